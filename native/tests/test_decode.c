/* The decoder: each stream whole, byte by byte, and at every cut in two must give the same messages or the same error. */
#include "rc_decode.h"
#include "rc_mask.h"
#include "rc_test.h"

enum {
    TEXT_ROOM = 4096
};

struct row {
    const char *name;
    const char *bytes;
    size_t length;
    bool masked;
    /* What was decoded, one item per message: "t(abc)" text, "b(...)" binary, "x(...)" close, "?(...)" ping, "!(...)" pong;
     * an open message lacks its ")". Payload bytes outside 33..126 stand as "." */
    const char *wanted;
    int failure;
};

#define ROW_BYTES(text) text, sizeof(text) - 1

static const struct row rows[] = {
    {"nothing", ROW_BYTES(""), false, "", 0},
    {"text", ROW_BYTES("\x81\x05hello"), false, "t(hello)", 0},
    {"masked text", ROW_BYTES("\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), true, "t(Hello)", 0}, /* RFC 6455 5.7 */
    {"fragments", ROW_BYTES("\x01\x03Hel\x80\x02lo"), false, "t(Hello)", 0},                         /* RFC 6455 5.7 */
    {"ping between fragments", ROW_BYTES("\x02\x01x\x89\x01p\x80\x01y"), false, "b(x?(p)y)", 0},
    {"empty text", ROW_BYTES("\x81\x00"), false, "t()", 0},
    {"empty final fragment", ROW_BYTES("\x02\x01x\x80\x00"), false, "b(x)", 0},
    {"only empty fragments", ROW_BYTES("\x01\x00\x00\x00\x80\x00"), false, "t()", 0},
    {"ping, pong", ROW_BYTES("\x89\x02pq\x8a\x00"), false, "?(pq)!()", 0},
    {"close", ROW_BYTES("\x88\x04\x03\xe8ok"), false, "x(..ok)", 0},
    {"empty close", ROW_BYTES("\x88\x00"), false, "x()", 0},
    {"data behind close", ROW_BYTES("\x88\x02\x03\xe8\xff\xff\xff"), false, "x(..)", 0},
    {"message left open", ROW_BYTES("\x02\x01x"), false, "b(x", 0},
    {"header left open", ROW_BYTES("\x81\x01x\x82\x7e\x01"), false, "t(x)", 0},

    {"error at once", ROW_BYTES("\x83\x00"), false, "", RC_EPROTO_OPCODE},
    {"error behind messages", ROW_BYTES("\x81\x01x\x89\x00\xc1\x00"), false, "t(x)?()", RC_EPROTO_RSV},
    {"continuation first", ROW_BYTES("\x80\x01x"), false, "", RC_EPROTO_CONTINUATION},
    {"continuation after an end", ROW_BYTES("\x81\x01x\x00\x01y"), false, "t(x)", RC_EPROTO_CONTINUATION},
    {"text in an open message", ROW_BYTES("\x01\x01x\x81\x01y"), false, "t(x", RC_EPROTO_INTERLEAVED},
    {"binary in an open message", ROW_BYTES("\x02\x01x\x02\x01y"), false, "b(x", RC_EPROTO_INTERLEAVED},
    {"close of one byte", ROW_BYTES("\x88\x01\x03"), false, "", RC_EPROTO_CLOSE_LENGTH},
    {"close 1005", ROW_BYTES("\x88\x02\x03\xed"), false, "", RC_EPROTO_CLOSE_CODE},
    {"close reason", ROW_BYTES("\x88\x04\x03\xe8\xc3\x28"), false, "", RC_EPROTO_CLOSE_UTF8},
    {"unmasked client", ROW_BYTES("\x81\x01x"), true, "", RC_EPROTO_UNMASKED},
};

struct text {
    char bytes[TEXT_ROOM];
    size_t length;
    bool message_is_open;
};

static void put(struct text *text, char c) {
    RC_ASSERT(text->length < TEXT_ROOM - 1);
    text->bytes[text->length++] = c;
    text->bytes[text->length] = 0;
}

static void put_piece(struct text *text, const struct rc_piece *piece, const uint8_t *out) {
    const char marks[] = {
        [RC_OP_TEXT] = 't', [RC_OP_BINARY] = 'b', [RC_OP_CLOSE] = 'x', [RC_OP_PING] = '?', [RC_OP_PONG] = '!'};

    CHECK(rc_opcode_is_control(piece->opcode) || (piece->opcode == 0) == text->message_is_open);
    if (piece->opcode != 0) {
        put(text, marks[piece->opcode]);
        put(text, '(');
    }
    for (size_t i = 0; i < piece->length; i++) {
        uint8_t c = out[piece->offset + i];
        put(text, c > 32 && c < 127 ? (char)c : '.');
    }
    if (piece->fin)
        put(text, ')');
    if (!rc_opcode_is_control(piece->opcode))
        text->message_is_open = !piece->fin;
    else
        CHECK(piece->fin);
}

/* Feeds one part, with room for `room` pieces at a time; stops at an error. */
static int feed(struct rc_decoder *decoder, struct rc_guarded *in, struct rc_guarded *out, const char *bytes,
                size_t length, size_t room, struct text *text) {
    while (decoder->failure == 0) {
        struct rc_piece pieces[8];
        size_t consumed;
        uint8_t *data = rc_guarded_at_end(in, bytes, length);
        uint8_t *target = rc_guarded_at_end(out, out->pages, length + RC_CONTROL_MAX);
        int count = rc_decode(decoder, data, length, target, length + RC_CONTROL_MAX, pieces, room, &consumed);

        CHECK(count >= 0 || count == decoder->failure);
        CHECK(consumed <= length);
        CHECK_BYTES(data, bytes, length); /* the input is only read */
        for (int i = 0; i < count; i++)
            put_piece(text, &pieces[i], target);
        bytes += consumed;
        length -= consumed;
        if (length == 0 && (size_t)(count < 0 ? 0 : count) < room)
            break;
    }
    return decoder->failure;
}

static void check_row(const struct row *row, struct rc_guarded *in, struct rc_guarded *out) {
    rc_test_case = row->name;
    for (size_t room = 1; room <= 8; room += 7) {
        for (size_t cut = 0; cut <= row->length; cut++) {
            struct rc_decoder decoder;
            struct text text = {.length = 0};

            rc_decoder_init(&decoder, row->masked);
            feed(&decoder, in, out, row->bytes, cut, room, &text);
            feed(&decoder, in, out, row->bytes + cut, row->length - cut, room, &text);
            CHECK(strcmp(text.bytes, row->wanted) == 0);
            CHECK_INT(decoder.failure, row->failure);
        }
        struct rc_decoder decoder;
        struct text text = {.length = 0};
        rc_decoder_init(&decoder, row->masked);
        for (size_t i = 0; i < row->length; i++)
            feed(&decoder, in, out, row->bytes + i, 1, room, &text);
        CHECK(strcmp(text.bytes, row->wanted) == 0);
        CHECK_INT(decoder.failure, row->failure);
    }
}

static void check_dead(void) {
    struct rc_decoder decoder;
    struct rc_piece pieces[2];
    uint8_t out[256];
    size_t consumed;

    rc_test_case = "an error stays";
    rc_decoder_init(&decoder, false);
    CHECK_INT(rc_decode(&decoder, (const uint8_t *)"\x83", 1, out, sizeof out, pieces, 2, &consumed), RC_EPROTO_OPCODE);
    CHECK_INT(rc_decode(&decoder, (const uint8_t *)"\x81\x00", 2, out, sizeof out, pieces, 2, &consumed),
              RC_EPROTO_OPCODE);
    CHECK_INT(consumed, 2);

    rc_test_case = "arguments";
    rc_decoder_init(&decoder, false);
    CHECK_INT(rc_decode(&decoder, out, 100, out + 100, 100, pieces, 2, &consumed), RC_EINVAL);
    CHECK_INT(rc_decode(&decoder, out, 1, out + 100, 126, pieces, 0, &consumed), RC_EINVAL);

    rc_test_case = "counts";
    const uint8_t *bytes = (const uint8_t *)"\x81\x00\x88\x00zzz";
    CHECK_INT(rc_decode(&decoder, bytes, 7, out, sizeof out, pieces, 2, &consumed), 2);
    CHECK_INT(consumed, 4);
    CHECK_INT(rc_decode(&decoder, bytes + 4, 3, out, sizeof out, pieces, 2, &consumed), 0);
    CHECK_INT(decoder.frames, 2);
    CHECK_INT(decoder.discarded_bytes, 3);
}

/* In place, behind head-room, with a control frame whose payload came almost whole before. */
static void check_in_place(void) {
    struct rc_decoder decoder;
    struct rc_piece pieces[4];
    uint8_t area[RC_CONTROL_MAX + 300], bytes[131 + 8], key[4] = {1, 2, 3, 4};
    size_t consumed;

    rc_test_case = "in place";
    memcpy(bytes, "\x89\xfd", 2);
    memcpy(bytes + 2, key, 4);
    memset(bytes + 6, 'p', 125);
    rc_mask(bytes + 6, bytes + 6, 125, rc_mask_load(key));
    memcpy(bytes + 131, "\x81\x82", 2);
    memcpy(bytes + 133, key, 4);
    bytes[137] = 'o' ^ 1;
    bytes[138] = 'k' ^ 2;
    for (size_t cut = 0; cut <= 131; cut++) {
        rc_decoder_init(&decoder, true);
        memcpy(area + RC_CONTROL_MAX, bytes, cut);
        int early = rc_decode(&decoder, area + RC_CONTROL_MAX, cut, area, sizeof area, pieces, 4, &consumed);
        CHECK_INT(early, cut == 131);
        memcpy(area + RC_CONTROL_MAX, bytes + cut, sizeof bytes - cut);
        int count =
            rc_decode(&decoder, area + RC_CONTROL_MAX, sizeof bytes - cut, area, sizeof area, pieces, 4, &consumed);
        CHECK_INT(count, 2 - early);
        if (!early) {
            CHECK_INT(pieces[0].length, 125);
            for (size_t i = 0; i < 125; i++)
                CHECK(area[pieces[0].offset + i] == 'p');
        }
        CHECK_BYTES(area + pieces[count - 1].offset, "ok", 2);
    }
}

int main(void) {
    struct rc_guarded in = rc_guarded_new(4096), out = rc_guarded_new(4096);

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_row(&rows[i], &in, &out);
    check_dead();
    check_in_place();
    rc_guarded_free(&in);
    rc_guarded_free(&out);
    return rc_test_done("test_decode");
}
