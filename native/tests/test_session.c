/* The brain, rule by rule on single streams, then whole stories: random scripts through every pair of kinds, window and way
 * of calling, checked by session_story.c. More of the wire contract is tested from Python, against a codec of its own. */
#include "rc_mask.h"
#include "rc_session.h"
#include "rc_test.h"
#include "session_story.h"

static const uint8_t seed[RC_SESSION_SEED_BYTES] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

struct row {
    const char *name;
    unsigned sender, listener;
    const char *in;
    size_t in_bytes;
    const char *out; /* what the listener gets, its frames unmasked here if need be */
    size_t out_bytes;
    uint32_t events;
    const char *back; /* what the sender is owed afterwards */
    size_t back_bytes;
};

#define BYTES(text) text, sizeof(text) - 1
#define K           "\x00\x00\x00\x00" /* a mask key that shows the payload */

enum {
    FINISHED = RC_STEP_FINISHED | RC_STEP_SOURCE_FINISHED
};

static const struct row rows[] = {
    {"message", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x81\x82" K "hi"), BYTES("\x81\x02hi"), 0, BYTES("")},
    {"fragments, empty end", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x02\x81" K "a\x00\x81" K "b\x80\x80" K),
     BYTES("\x02\x01"
           "a\x00\x01"
           "b\x80\x00"),
     0, BYTES("")},
    {"empty message", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x81\x80" K), BYTES("\x81\x00"), 0, BYTES("")},
    {"header alone waits", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x81\x82" K), BYTES(""), 0, BYTES("")},
    {"ping is answered", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x89\x81" K "p\x81\x81" K "x"), BYTES("\x81\x01x"),
     RC_STEP_CONTROL_OWED_BACK, BYTES("\x8a\x01p")},
    {"each ping is", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x89\x81" K "p\x89\x80" K "\x89\x81" K "q"), BYTES(""),
     RC_STEP_CONTROL_OWED_BACK, BYTES("\x8a\x01p\x8a\x00\x8a\x01q")},
    {"pong is swallowed", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x8a\x81" K "p"), BYTES(""), 0, BYTES("")},
    {"close is forwarded", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER,
     BYTES("\x88\x83" K "\x0b\xb8r"
           "\x81\x80" K),
     BYTES("\x88\x03\x0b\xb8r"), FINISHED, BYTES("")},
    {"empty close too", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x88\x80" K), BYTES("\x88\x00"), FINISHED,
     BYTES("")},
    {"close overtakes its ping", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x89\x81" K "p\x88\x80" K),
     BYTES("\x88\x00"), FINISHED, BYTES("")},
    {"close to a RAW leg", RC_LEG_WS_SERVER, RC_LEG_RAW, BYTES("\x82\x81" K "x\x88\x82" K "\x03\xe8"), BYTES("x"),
     FINISHED, BYTES("")},
    {"raw to WebSocket", RC_LEG_RAW, RC_LEG_WS_SERVER, BYTES("bytes"),
     BYTES("\x82\x05"
           "bytes"),
     0, BYTES("")},
    {"raw to raw", RC_LEG_RAW, RC_LEG_RAW, BYTES("bytes"), BYTES("bytes"), 0, BYTES("")},
    {"WebSocket to raw", RC_LEG_WS_CLIENT, RC_LEG_RAW,
     BYTES("\x02\x01"
           "a\x8a\x00\x80\x02"
           "bc"),
     BYTES("abc"), 0, BYTES("")},
    {"server to server's peer", RC_LEG_WS_CLIENT, RC_LEG_WS_SERVER, BYTES("\x81\x02hi\x81\x00"),
     BYTES("\x81\x02hi\x81\x00"), 0, BYTES("")},
    {"broken rule", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x81\x81" K "x\xc1\x80" K), BYTES("\x81\x01x"),
     RC_STEP_PROTOCOL_ERROR | RC_STEP_CONTROL_OWED_BACK | RC_STEP_SOURCE_FINISHED, BYTES("\x88\x02\x03\xea")},
    {"close reason not UTF-8", RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, BYTES("\x88\x83" K "\x03\xe8\xff"), BYTES(""),
     RC_STEP_PROTOCOL_ERROR | RC_STEP_CONTROL_OWED_BACK | RC_STEP_SOURCE_FINISHED, BYTES("\x88\x02\x03\xef")},
};

/* Removes the masks of a stream that goes to a server, so that rows can say what it holds. */
static size_t unmask(uint8_t *data, size_t length) {
    size_t out = 0, at = 0;
    while (at < length) {
        struct rc_frame frame;
        int header_bytes = rc_frame_parse(&frame, data + at, length - at, true);
        CHECK(header_bytes > 0);
        at += (size_t)header_bytes;
        frame.masked = false;
        out += (size_t)rc_frame_build(data + out, RC_HEADER_MAX, &frame);
        rc_mask(data + out, data + at, (size_t)frame.payload_bytes, rc_mask_load(frame.key));
        at += (size_t)frame.payload_bytes;
        out += (size_t)frame.payload_bytes;
    }
    return out;
}

static void check_row(const struct row *row, unsigned listener, bool out_of_place) {
    struct rc_session session;
    struct rc_guarded slab = rc_guarded_new(4096), source = rc_guarded_new(4096);

    rc_test_case = row->name;
    for (size_t cut = 0; cut <= row->in_bytes; cut++) {
        uint8_t out[512];
        size_t out_bytes = 0;
        uint32_t events = 0;
        struct rc_step step;

        if (row->sender == RC_LEG_RAW && cut != 0)
            break; /* each receive is a message of its own */
        CHECK_INT(rc_session_init(&session, row->sender, listener, seed), RC_OK);
        for (int part = 0; part < 2; part++) {
            const char *bytes = part == 0 ? row->in : row->in + cut;
            size_t length = part == 0 ? cut : row->in_bytes - cut;
            size_t at = RC_HEADROOM;
            uint8_t *base;

            do {
                if (out_of_place) {
                    uint8_t *data = rc_guarded_at_end(&source, bytes, length);
                    base = rc_guarded_at_end(&slab, slab.pages, RC_SESSION_ROOM_MIN);
                    CHECK_INT(rc_session_translate_from(&session, RC_TO_LISTENER, data, length, base,
                                                        RC_SESSION_ROOM_MIN, &step),
                              RC_OK);
                } else {
                    base = slab.pages + slab.room - at - length;
                    memcpy(base + at, bytes, length);
                    CHECK_INT(rc_session_translate(&session, RC_TO_LISTENER, base, at, length, &step), RC_OK);
                }
                memcpy(out + out_bytes, base + step.out_offset, step.out_bytes);
                out_bytes += step.out_bytes;
                events |= step.events;
                bytes += step.consumed;
                length -= step.consumed;
            } while (step.events & RC_STEP_MORE);
            CHECK_INT(length, 0);
        }
        if (listener == RC_LEG_WS_CLIENT)
            out_bytes = unmask(out, out_bytes);
        CHECK_INT(out_bytes, row->out_bytes);
        CHECK_BYTES(out, row->out, row->out_bytes);
        /* Cut behind a Ping, the event comes before the Close that makes it pointless. */
        CHECK_INT(events & ~(uint32_t)(RC_STEP_MORE | RC_STEP_CONTROL_OWED_BACK),
                  row->events & ~(uint32_t)RC_STEP_CONTROL_OWED_BACK);
        CHECK((row->events & ~events) == 0);
        CHECK_INT(rc_session_owes_control(&session, RC_TO_SENDER), row->back_bytes > 0);
        CHECK_INT(rc_session_control(&session, RC_TO_SENDER, out, sizeof out, &step), RC_OK);
        CHECK_INT(step.out_bytes, row->back_bytes);
        CHECK_BYTES(out, row->back, row->back_bytes);
        CHECK(!rc_session_owes_control(&session, RC_TO_SENDER));
    }
    rc_guarded_free(&slab);
    rc_guarded_free(&source);
}

static void check_arguments(void) {
    struct rc_session session;
    struct rc_step step;
    uint8_t slab[1024];

    rc_test_case = "arguments";
    CHECK(sizeof session <= 736); /* with the engine's job, 1 KiB */
    CHECK_INT(rc_session_init(&session, 3, 0, seed), RC_EINVAL);
    CHECK_INT(rc_session_init(&session, 0, 3, seed), RC_EINVAL);
    CHECK_INT(rc_session_init(&session, RC_LEG_WS_SERVER, RC_LEG_WS_SERVER, seed), RC_OK);
    CHECK_INT(rc_session_translate(&session, 2, slab, RC_HEADROOM, 0, &step), RC_EINVAL);
    CHECK_INT(rc_session_translate(&session, 0, slab, RC_HEADROOM - 1, 0, &step), RC_EINVAL);
    CHECK_INT(rc_session_translate_from(&session, 0, slab, 0, slab, RC_SESSION_ROOM_MIN - 1, &step), RC_EINVAL);
    CHECK_INT(rc_session_eof(&session, 2, slab, sizeof slab, &step), RC_EINVAL);
    CHECK_INT(rc_session_eof(&session, 0, slab, RC_SESSION_ROOM_MIN - 1, &step), RC_EINVAL);
    CHECK_INT(rc_session_control(&session, 2, slab, sizeof slab, &step), RC_EINVAL);
    CHECK(!rc_session_owes_control(&session, 2));
    CHECK_INT(rc_session_close(&session, 1005, NULL, 0), RC_EINVAL);
    CHECK_INT(rc_session_close(&session, 1001, slab, 124), RC_EINVAL);
    CHECK_INT(rc_session_close(&session, 1001, (const uint8_t *)"\xff", 1), RC_EINVAL);
    CHECK(!rc_session_owes_control(&session, 0));

    struct rc_direction_counters counters = {.frames_in = 1};
    uint16_t close_code = 1;
    session.directions[0].counters.frames_in = 7;
    rc_session_counters(&session, 2, &counters, &close_code);
    CHECK(counters.frames_in == 0 && close_code == 0);
    rc_session_counters(&session, 0, &counters, &close_code);
    CHECK(counters.frames_in == 7 && close_code == 0);
}

/* A full window of the frames that grow most: empty ones from a server, masked on their way to a server. */
static void check_growth(void) {
    enum {
        WINDOW = 65536
    };
    static uint8_t slab[RC_HEADROOM + WINDOW];
    struct rc_session session;
    struct rc_step step;
    size_t at = RC_HEADROOM, left = WINDOW, frames = 0;
    int rounds = 0;

    rc_test_case = "growth";
    CHECK_INT(rc_session_init(&session, RC_LEG_WS_CLIENT, RC_LEG_WS_CLIENT, seed), RC_OK);
    for (size_t i = 0; i < WINDOW; i += 2)
        memcpy(slab + RC_HEADROOM + i, "\x82\x00", 2);
    do {
        CHECK_INT(rc_session_translate(&session, RC_TO_LISTENER, slab, at, left, &step), RC_OK);
        CHECK_INT(step.out_bytes % 6, 0);
        frames += step.out_bytes / 6;
        at += step.consumed;
        left -= step.consumed;
        rounds++;
    } while (step.events & RC_STEP_MORE);
    CHECK_INT(frames, WINDOW / 2);
    CHECK(rounds <= 20);
}

/* Mask keys: all different, and none of them 0 for long. */
static void check_keys(void) {
    enum {
        FRAMES = 1000
    };
    static uint8_t slab[RC_HEADROOM + 16];
    static uint32_t keys[FRAMES];
    struct rc_session session;
    struct rc_step step;
    struct rc_frame frame;
    size_t same = 0;

    rc_test_case = "keys";
    CHECK_INT(rc_session_init(&session, RC_LEG_RAW, RC_LEG_WS_CLIENT, seed), RC_OK);
    for (size_t i = 0; i < FRAMES; i++) {
        memset(slab + RC_HEADROOM, 'x', 8);
        CHECK_INT(rc_session_translate(&session, RC_TO_LISTENER, slab, RC_HEADROOM, 8, &step), RC_OK);
        CHECK_INT(rc_frame_parse(&frame, slab + step.out_offset, step.out_bytes, true), 6);
        keys[i] = rc_mask_load(frame.key);
        for (size_t k = 0; k < i; k++)
            same += keys[k] == keys[i];
    }
    CHECK(same <= 1); /* 1000 draws of 2^32: one pair meets once in 9000 runs, and this run is always the same */
}

/* Frames around the limit, and one byte of a second piece: pieces of RC_FRAME_MAX, then the rest, none empty. */
static void check_limit(void) {
    static uint8_t slab[RC_HEADROOM + 3 * RC_FRAME_MAX], out[4 * RC_FRAME_MAX];
    const size_t lengths[] = {65535, 65536, 65537, 131071, 131072, 131073};

    rc_test_case = "limit";
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (size_t cut = 1; cut <= lengths[i]; cut += cut < 20 ? 1 : 9973) {
            struct rc_session session;
            struct rc_frame frame = {.payload_bytes = lengths[i], .opcode = RC_OP_TEXT, .fin = true};
            struct rc_step step;
            uint8_t header[RC_HEADER_MAX];
            size_t sent = 0, out_bytes = 0, at = 0, payload = 0;
            size_t length = (size_t)rc_frame_build(header, sizeof header, &frame) + lengths[i];

            CHECK_INT(rc_session_init(&session, RC_LEG_WS_CLIENT, RC_LEG_WS_SERVER, seed), RC_OK);
            while (sent < length) {
                size_t part = sent == 0 ? cut : length - sent, left = part;
                size_t in = RC_HEADROOM;
                memset(slab + in, 'x', part);
                for (size_t k = 0; k < part && sent + k < length - lengths[i]; k++)
                    slab[in + k] = header[sent + k];
                do {
                    CHECK_INT(rc_session_translate(&session, RC_TO_LISTENER, slab, in, left, &step), RC_OK);
                    memcpy(out + out_bytes, slab + step.out_offset, step.out_bytes);
                    out_bytes += step.out_bytes;
                    in += step.consumed;
                    left -= step.consumed;
                } while (step.events & RC_STEP_MORE);
                sent += part;
            }
            while (at < out_bytes) {
                int header_bytes = rc_frame_parse(&frame, out + at, out_bytes - at, false);
                size_t left = lengths[i] - payload;
                CHECK(header_bytes > 0);
                CHECK_INT(frame.payload_bytes, left < RC_FRAME_MAX ? left : RC_FRAME_MAX);
                CHECK_INT(frame.opcode, payload == 0 ? RC_OP_TEXT : RC_OP_CONTINUATION);
                payload += (size_t)frame.payload_bytes;
                CHECK_INT(frame.fin, payload == lengths[i]);
                at += (size_t)header_bytes + (size_t)frame.payload_bytes;
            }
            CHECK_INT(at, out_bytes);
            CHECK_INT(payload, lengths[i]);
        }
    }
}

static void check_stories(unsigned count) {
    uint64_t state = 7;
    uint8_t script[400];

    for (unsigned i = 0; i < count; i++) {
        struct story_result result;
        char name[32];
        size_t length = 2;

        snprintf(name, sizeof name, "story %u", i);
        rc_test_case = name;
        script[0] = (uint8_t)(i % 9);
        script[1] = (uint8_t)(i / 9 % 16);
        size_t acts = rc_test_random(&state) % 24;
        while (acts-- > 0) {
            static const uint8_t cuts[] = {0, 1, 2, 3, 5, 7, 13, 60, 131, 255};
            uint64_t dice = rc_test_random(&state);
            unsigned roll = (unsigned)(dice >> 8) % 100;
            uint8_t direction = (uint8_t)((dice & 1) << 7);

            if ((dice >> 56) % 4 == 0) {
                script[length++] = direction | 7;
                script[length++] = cuts[(dice >> 58) % 10];
            }
            if (roll < 60) { /* a frame, now and then a large one, half of them short, some empty */
                script[length++] = direction | 1;
                script[length++] = (uint8_t)((dice >> 16 & 0x80) | ((dice >> 24) % 8 == 0 ? dice >> 32 & 0x7F : 0));
                script[length++] = (uint8_t)((dice >> 40) % 4 == 0 ? dice >> 48 & 1 : dice >> 48);
            } else if (roll < 75) {
                script[length++] = direction | 5;
                script[length++] = (uint8_t)(dice >> 16);
            } else if (roll < 90) {
                script[length++] = direction | 3;
            } else if (roll < 94) {
                script[length++] = direction | 6;
            } else if (roll < 96) {
                script[length++] = direction | 2;
            } else if (roll < 97) {
                script[length++] = direction | 4;
            } else { /* noise, which mostly breaks a rule */
                script[length++] = direction;
                script[length++] = 3;
                for (int k = 0; k < 3; k++)
                    script[length++] = (uint8_t)(dice >> (16 + 8 * k));
            }
        }
        story_play(script, length, &result);
        story_free(&result);
    }
}

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int out_of_place = 0; out_of_place < 2; out_of_place++) {
            check_row(&rows[i], rows[i].listener, out_of_place);
            if (rows[i].listener == RC_LEG_WS_SERVER)
                check_row(&rows[i], RC_LEG_WS_CLIENT, out_of_place);
        }
    }
    check_arguments();
    check_growth();
    check_keys();
    check_limit();
    check_stories(argc > 1 ? (unsigned)atoi(argv[1]) : 3000);
    return rc_test_done("test_session");
}
