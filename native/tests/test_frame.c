/* Headers, one table row per rule. Each row is parsed whole, cut at every place, and with bytes behind it, always laid
 * against an unreadable page. */
#include "rc_frame.h"
#include "rc_test.h"

struct row {
    const char *name;
    const char *bytes;
    size_t length;
    bool masked;
    int result; /* header bytes or RC_EPROTO_* */
    uint64_t payload_bytes;
    uint8_t opcode;
    bool fin;
};

#define ROW_BYTES(text) text, sizeof(text) - 1

static const struct row rows[] = {
    {"empty text", ROW_BYTES("\x81\x00"), false, 2, 0, 1, true},
    {"text of 125", ROW_BYTES("\x81\x7d"), false, 2, 125, 1, true},
    {"masked binary", ROW_BYTES("\x82\x85\x01\x02\x03\x04"), true, 6, 5, 2, true},
    {"first fragment", ROW_BYTES("\x01\x03"), false, 2, 3, 1, false},
    {"middle fragment", ROW_BYTES("\x00\x03"), false, 2, 3, 0, false},
    {"last fragment", ROW_BYTES("\x80\x03"), false, 2, 3, 0, true},
    {"length 126", ROW_BYTES("\x82\x7e\x00\x7e"), false, 4, 126, 2, true},
    {"length 65535", ROW_BYTES("\x82\x7e\xff\xff"), false, 4, 65535, 2, true},
    {"length 65536", ROW_BYTES("\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"), false, 10, 65536, 2, true},
    {"length 2^31", ROW_BYTES("\x82\x7f\x00\x00\x00\x00\x80\x00\x00\x00"), false, 10, 1ull << 31, 2, true},
    {"length 2^63 - 1", ROW_BYTES("\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"), false, 10, INT64_MAX, 2, true},
    {"longest header", ROW_BYTES("\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00\x09\x08\x07\x06"), true, 14, 1ull << 32, 2,
     true},
    {"close", ROW_BYTES("\x88\x02"), false, 2, 2, 8, true},
    {"ping of 125", ROW_BYTES("\x89\x7d"), false, 2, 125, 9, true},
    {"empty pong", ROW_BYTES("\x8a\x80\x00\x00\x00\x00"), true, 6, 0, 10, true},

    {"RSV1", ROW_BYTES("\xc1\x00"), false, RC_EPROTO_RSV, 0, 0, false},
    {"RSV2", ROW_BYTES("\xa1\x00"), false, RC_EPROTO_RSV, 0, 0, false},
    {"RSV3", ROW_BYTES("\x91\x00"), false, RC_EPROTO_RSV, 0, 0, false},
    {"RSV1 in a ping", ROW_BYTES("\xc9\x00"), false, RC_EPROTO_RSV, 0, 0, false},
    {"opcode 3", ROW_BYTES("\x83\x00"), false, RC_EPROTO_OPCODE, 0, 0, false},
    {"opcode 7", ROW_BYTES("\x87\x00"), false, RC_EPROTO_OPCODE, 0, 0, false},
    {"opcode 11", ROW_BYTES("\x8b\x00"), false, RC_EPROTO_OPCODE, 0, 0, false},
    {"opcode 15", ROW_BYTES("\x8f\x00"), false, RC_EPROTO_OPCODE, 0, 0, false},
    {"ping without FIN", ROW_BYTES("\x09\x00"), false, RC_EPROTO_FRAGMENTED, 0, 0, false},
    {"close without FIN", ROW_BYTES("\x08\x00"), false, RC_EPROTO_FRAGMENTED, 0, 0, false},
    {"ping of 126", ROW_BYTES("\x89\x7e\x00\x7e"), false, RC_EPROTO_CONTROL_LENGTH, 0, 0, false},
    {"close of 2^16", ROW_BYTES("\x88\x7f\x00\x00\x00\x00\x00\x01\x00\x00"), false, RC_EPROTO_CONTROL_LENGTH, 0, 0,
     false},
    {"client without mask", ROW_BYTES("\x81\x00"), true, RC_EPROTO_UNMASKED, 0, 0, false},
    {"server with mask", ROW_BYTES("\x81\x80\x00\x00\x00\x00"), false, RC_EPROTO_MASKED, 0, 0, false},
    {"125 in two bytes", ROW_BYTES("\x82\x7e\x00\x7d"), false, RC_EPROTO_LENGTH, 0, 0, false},
    {"0 in two bytes", ROW_BYTES("\x82\x7e\x00\x00"), false, RC_EPROTO_LENGTH, 0, 0, false},
    {"65535 in eight bytes", ROW_BYTES("\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff"), false, RC_EPROTO_LENGTH, 0, 0,
     false},
    {"length 2^63", ROW_BYTES("\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00"), false, RC_EPROTO_LENGTH, 0, 0, false},
    {"length 2^64 - 1", ROW_BYTES("\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), false, RC_EPROTO_LENGTH, 0, 0, false},
};

static void check_row(const struct row *row, struct rc_guarded *area) {
    struct rc_frame frame;
    uint8_t longer[64];

    rc_test_case = row->name;
    for (size_t cut = 0; cut <= row->length; cut++) {
        uint8_t *data = rc_guarded_at_end(area, row->bytes, cut);
        int result = rc_frame_parse(&frame, data, cut, row->masked);

        if (result == RC_NEED_MORE)
            CHECK(cut < row->length);
        else
            CHECK_INT(result, row->result); /* an error may show before the header is whole, a success may not */
        if (result > 0)
            CHECK_INT(cut, row->length);
    }

    memcpy(longer, row->bytes, row->length);
    memset(longer + row->length, 0xFF, sizeof longer - row->length);
    CHECK_INT(rc_frame_parse(&frame, longer, sizeof longer, row->masked), row->result);
    if (row->result < 0)
        return;
    CHECK(frame.payload_bytes == row->payload_bytes);
    CHECK_INT(frame.opcode, row->opcode);
    CHECK_INT(frame.fin, row->fin);
    CHECK_INT(frame.masked, row->masked);
    if (row->masked)
        CHECK_BYTES(frame.key, row->bytes + row->length - 4, 4);

    /* Building gives the very bytes back, in just the room they need. */
    CHECK_INT(rc_frame_header_bytes(frame.payload_bytes, frame.masked), row->length);
    uint8_t *out = rc_guarded_at_end(area, row->bytes, row->length);
    memset(out, 0, row->length);
    CHECK_INT(rc_frame_build(out, row->length, &frame), row->length);
    CHECK_BYTES(out, row->bytes, row->length);
    memset(out, 0, row->length);
    CHECK_INT(rc_frame_build(out, row->length - 1, &frame), RC_EINVAL);
    for (size_t i = 0; i < row->length; i++)
        CHECK_INT(out[i], 0);
}

static void check_build_refuses(void) {
    uint8_t out[RC_HEADER_MAX];
    const struct rc_frame refused[] = {
        {.opcode = 3, .fin = true},
        {.opcode = 11, .fin = true},
        {.opcode = 0x1F, .fin = true},
        {.opcode = RC_OP_PING, .fin = false},
        {.opcode = RC_OP_PING, .fin = true, .payload_bytes = 126},
        {.opcode = RC_OP_BINARY, .fin = true, .payload_bytes = 1ull << 63},
    };

    rc_test_case = "build refuses";
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        CHECK_INT(rc_frame_build(out, sizeof out, &refused[i]), RC_EINVAL);
}

static void check_close_codes(void) {
    rc_test_case = "close codes";
    for (unsigned code = 0; code <= 0xFFFF; code++) {
        const uint8_t payload[2] = {(uint8_t)(code >> 8), (uint8_t)code};
        uint16_t found;
        bool wanted = (code >= 3000 && code < 5000) || (code >= 1000 && code < 1015 && (code < 1004 || code > 1006));

        CHECK_INT(rc_close_code_is_valid((uint16_t)code), wanted);
        CHECK_INT(rc_close_check(payload, 2, &found), wanted ? RC_OK : RC_EPROTO_CLOSE_CODE);
        CHECK_INT(found, wanted ? code : 0);
    }
    uint16_t found;
    CHECK_INT(rc_close_check((const uint8_t *)"", 0, &found), RC_OK);
    CHECK_INT(found, 0);
    CHECK_INT(rc_close_check((const uint8_t *)"\x03", 1, &found), RC_EPROTO_CLOSE_LENGTH);
    CHECK_INT(rc_close_check((const uint8_t *)"\x03\xe8\xc3", 3, &found), RC_EPROTO_CLOSE_UTF8);
    CHECK_INT(rc_close_check((const uint8_t *)"\x03\xe8\xc3\xa4", 4, &found), RC_OK);
    CHECK_INT(rc_close_code(RC_EPROTO_CLOSE_UTF8), 1007);
    CHECK_INT(rc_close_code(RC_EPROTO_CLOSE_CODE), 1002);
    CHECK(RC_IS_PROTOCOL_ERROR(RC_EPROTO_RSV) && RC_IS_PROTOCOL_ERROR(RC_EPROTO_CLOSE_UTF8));
    CHECK(!RC_IS_PROTOCOL_ERROR(RC_NEED_MORE) && !RC_IS_PROTOCOL_ERROR(RC_EINVAL) && !RC_IS_PROTOCOL_ERROR(RC_OK));
}

static void check_utf8(struct rc_guarded *area) {
    const struct {
        const char *text;
        bool valid;
    } texts[] = {
        {"", true},
        {"plain", true},
        {"\xc2\x80", true},
        {"\xdf\xbf", true},
        {"\xe0\xa0\x80", true},
        {"\xed\x9f\xbf", true},
        {"\xee\x80\x80", true},
        {"\xef\xbf\xbf", true},
        {"\xf0\x90\x80\x80", true},
        {"\xf4\x8f\xbf\xbf", true},
        {"a\xf0\x9f\x90\xb1z", true},
        {"\x80", false},
        {"\xbf", false},
        {"\xc0\xaf", false},
        {"\xc1\xbf", false},
        {"\xc2", false},
        {"\xc2\x41", false},
        {"\xe0\x80\xaf", false},
        {"\xe0\x9f\xbf", false},
        {"\xed\xa0\x80", false},
        {"\xed\xbf\xbf", false},
        {"\xe2\x82", false},
        {"\xf0\x80\x80\xaf", false},
        {"\xf0\x8f\xbf\xbf", false},
        {"\xf4\x90\x80\x80", false},
        {"\xf5\x80\x80\x80", false},
        {"\xff", false},
        {"ok\xe2\x28\xa1", false},
        {"\xf0\x9f\x90", false},
    };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t length = strlen(texts[i].text);
        rc_test_case = texts[i].text;
        CHECK_INT(rc_utf8_is_valid(rc_guarded_at_end(area, texts[i].text, length), length), texts[i].valid);
    }
}

int main(void) {
    struct rc_guarded area = rc_guarded_new(4096);

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_row(&rows[i], &area);
    check_build_refuses();
    check_close_codes();
    check_utf8(&area);
    rc_guarded_free(&area);
    return rc_test_done("test_frame");
}
