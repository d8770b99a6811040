#include "session_story.h"

#include "rc_mask.h"
#include "rc_test.h"

/* Sizes of a window (in place) or of the whole room (out of place); small ones make RC_STEP_MORE frequent. */
static const size_t ROOMS[8] = {65536, 4096, 1, 7, 64, 300, 1000, 20000};

/* The script's reader: what the two sources say. */
struct script {
    const struct story_stage *stage;
    struct story_streams *streams;
    size_t frame_max;
    struct bytes held[2];    /* what act 7 keeps back */
    size_t cut[2];           /* where it cuts the next frame; SIZE_MAX: nowhere */
    bool message_is_open[2]; /* of the frames that act 1 made */
};

/* The stage in memory: a session without sockets. */
struct story {
    struct rc_session session;
    struct story_streams streams;
    bool out_of_place;
    size_t window;
    struct rc_guarded slab, source; /* the slab's window ends at an unreadable page */
    uint32_t events[2];
    size_t ended_at[2]; /* bytes out when RC_STEP_FINISHED came; SIZE_MAX before */
};

static void note_step(struct story *story, unsigned direction, const struct rc_step *step, const uint8_t *base) {
    CHECK(story->ended_at[direction] == SIZE_MAX || step->out_bytes == 0);
    bytes_append(&story->streams.out[direction], base + step->out_offset, step->out_bytes);
    story->events[direction] |= step->events;
    if (step->events & RC_STEP_FINISHED) {
        CHECK(story->ended_at[direction] == SIZE_MAX);
        story->ended_at[direction] = story->streams.out[direction].length;
    }
}

static void send_in_place(struct story *story, unsigned direction, const uint8_t *data, size_t length) {
    uint8_t *slab = story->slab.pages + story->slab.room - (RC_HEADROOM + story->window);

    while (length > 0) {
        size_t part = length < story->window ? length : story->window;
        size_t at = RC_HEADROOM, left = part;
        struct rc_step step;
        int rounds = 0;

        memset(slab, 0xEE, RC_HEADROOM);
        memcpy(slab + RC_HEADROOM, data, part);
        do {
            CHECK_INT(rc_session_translate(&story->session, direction, slab, at, left, &step), RC_OK);
            CHECK(step.consumed <= left);
            CHECK(step.out_offset + step.out_bytes <= at + step.consumed);
            CHECK(!(step.events & RC_STEP_MORE) || step.out_bytes > 0 || step.consumed > 0);
            note_step(story, direction, &step, slab);
            at += step.consumed;
            left -= step.consumed;
            CHECK(++rounds < 100);
        } while (step.events & RC_STEP_MORE);
        CHECK_INT(left, 0);
        data += part;
        length -= part;
    }
}

static void send_out_of_place(struct story *story, unsigned direction, const uint8_t *data, size_t length) {
    size_t room = story->window < RC_SESSION_ROOM_MIN ? RC_SESSION_ROOM_MIN : story->window;
    uint8_t *out = story->slab.pages + story->slab.room - room;
    struct rc_step step;

    while (length > 0) {
        size_t part = length < story->source.room ? length : story->source.room;
        uint8_t *in = rc_guarded_at_end(&story->source, data, part);
        size_t left = part;
        do {
            CHECK_INT(rc_session_translate_from(&story->session, direction, in, left, out, room, &step), RC_OK);
            CHECK(step.consumed <= left && step.out_offset == 0 && step.out_bytes <= room);
            CHECK(!(step.events & RC_STEP_MORE) || step.out_bytes > 0);
            note_step(story, direction, &step, out);
            in += step.consumed;
            left -= step.consumed;
        } while (step.events & RC_STEP_MORE);
        CHECK_INT(left, 0);
        data += part;
        length -= part;
    }
}

static void send_in_memory(void *context, unsigned direction, const uint8_t *data, size_t length) {
    struct story *story = context;

    if (story->out_of_place)
        send_out_of_place(story, direction, data, length);
    else
        send_in_place(story, direction, data, length);
}

static void say(struct script *script, unsigned direction, const uint8_t *data, size_t length) {
    struct story_streams *streams = script->streams;

    if (streams->ended[direction])
        return;
    if (script->held[direction].length > 0) {
        struct bytes held = script->held[direction];
        memset(&script->held[direction], 0, sizeof held);
        say(script, direction, held.data, held.length);
        free(held.data);
    }
    bytes_append(&streams->in[direction], data, length);
    script->stage->send(script->stage->context, direction, data, length);
}

/* 128 KiB that repeat at no power of two, so that a misplaced byte shows. */
static const uint8_t *filler(void) {
    static uint8_t bytes[1 << 17];

    if (bytes[1] == 0)
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(i * 7 + i / 251);
    return bytes;
}

static void say_frame(struct script *script, unsigned direction, uint8_t opcode, bool fin, size_t length) {
    struct rc_frame frame = {.payload_bytes = length, .opcode = opcode, .fin = fin, .key = {0x11, 0xA2, 0x33, 0xC4}};
    struct bytes bytes = {0};
    uint8_t header[RC_HEADER_MAX];

    if (script->streams->kinds[direction] != RC_LEG_RAW) {
        frame.masked = script->streams->kinds[direction] == RC_LEG_WS_SERVER;
        int header_bytes = rc_frame_build(header, sizeof header, &frame);
        CHECK(header_bytes > 0);
        bytes_append(&bytes, header, (size_t)header_bytes);
    }
    size_t start = bytes.length;
    if (length > 0)
        bytes_append(&bytes, filler(), length);
    if (opcode == RC_OP_CLOSE && length >= 2)
        memcpy(bytes.data + start,
               "\x03\xe8"
               "bye",
               length < 5 ? length : 5);
    if (frame.masked && length > 0)
        rc_mask(bytes.data + start, bytes.data + start, length, rc_mask_load(frame.key));
    size_t cut = bytes.length < script->cut[direction] ? bytes.length : script->cut[direction];
    script->cut[direction] = SIZE_MAX;
    if (bytes.length > 0) {
        say(script, direction, bytes.data, cut);
        bytes_append(&script->held[direction], bytes.data + cut, bytes.length - cut);
    }
    free(bytes.data);
}

static void small_call(struct story *story, unsigned direction, bool eof) {
    uint8_t *out = story->slab.pages + story->slab.room - RC_SESSION_ROOM_MIN;
    struct rc_step step;

    do {
        int result = eof ? rc_session_eof(&story->session, direction, out, RC_SESSION_ROOM_MIN, &step)
                         : rc_session_control(&story->session, direction, out, RC_SESSION_ROOM_MIN, &step);
        CHECK_INT(result, RC_OK);
        note_step(story, direction, &step, out);
        CHECK(!(step.events & RC_STEP_MORE) || step.out_bytes > 0);
        eof = false;
    } while (step.events & RC_STEP_MORE);
}

static void end_in_memory(void *context, unsigned direction) {
    small_call(context, direction, true);
}

static void ask_in_memory(void *context, unsigned direction) {
    small_call(context, direction, false);
}

static void close_in_memory(void *context) {
    struct story *story = context;

    CHECK_INT(rc_session_close(&story->session, 1001, (const uint8_t *)"going", 5), RC_OK);
}

/* A decoded stream, frame after frame: what the comparison works on. */
struct reading {
    struct bytes data;  /* payload of all data messages */
    struct bytes marks; /* size_t pairs: (opcode, place in data) where a message begins, (99, place) where it ends */
    struct bytes pings, pongs; /* size_t length, then the payload, one after another */
    struct bytes close;        /* payload */
    bool has_close;
    size_t empty_frames; /* data frames without payload */
    size_t frames_above_limit;
    int failure;
    bool in_frame; /* the stream ends inside a frame's payload */
};

static void mark(struct reading *reading, size_t what) {
    size_t pair[2] = {what, reading->data.length};
    bytes_append(&reading->marks, pair, sizeof pair);
}

static void read_raw(struct reading *reading, const struct bytes *stream) {
    bytes_append(&reading->data, stream->data, stream->length);
}

static void read_ws(struct reading *reading, const struct bytes *stream, bool masked) {
    struct rc_decoder decoder;
    struct rc_piece pieces[64];
    uint8_t out[4096 + RC_CONTROL_MAX];
    size_t at = 0;

    rc_decoder_init(&decoder, masked);
    while (at < stream->length && decoder.failure == 0) {
        size_t part = stream->length - at < 4096 ? stream->length - at : 4096, consumed;
        int count = rc_decode(&decoder, stream->data + at, part, out, sizeof out, pieces, 64, &consumed);
        for (int i = 0; i < count; i++) {
            const uint8_t *payload = out + pieces[i].offset;
            size_t length = pieces[i].length;
            struct bytes *list = pieces[i].opcode == RC_OP_PING ? &reading->pings : &reading->pongs;

            switch (pieces[i].opcode) {
            case RC_OP_CLOSE:
                reading->has_close = true;
                bytes_append(&reading->close, payload, length);
                break;
            case RC_OP_PING:
            case RC_OP_PONG:
                bytes_append(list, &length, sizeof length);
                bytes_append(list, payload, length);
                break;
            default:
                if (pieces[i].opcode != RC_OP_CONTINUATION)
                    mark(reading, pieces[i].opcode);
                bytes_append(&reading->data, payload, length);
                if (pieces[i].fin)
                    mark(reading, 99);
            }
        }
        at += consumed;
    }
    reading->failure = decoder.failure;
    reading->in_frame = decoder.frame_is_open && decoder.left > 0;

    /* Headers once more, for what pieces do not tell. */
    if (stream->length == 0)
        return;
    const uint8_t *p = stream->data, *end = p + stream->length;
    while (p < end) {
        struct rc_frame frame;
        int header_bytes = rc_frame_parse(&frame, p, (size_t)(end - p), masked);
        if (header_bytes < 0)
            break;
        if (frame.opcode == RC_OP_CLOSE)
            break;
        reading->empty_frames += !rc_opcode_is_control(frame.opcode) && frame.payload_bytes == 0;
        reading->frames_above_limit += frame.payload_bytes > RC_FRAME_MAX;
        p += header_bytes;
        if (frame.payload_bytes > (uint64_t)(end - p))
            break;
        p += frame.payload_bytes;
    }
}

static void reading_free(struct reading *reading) {
    free(reading->data.data);
    free(reading->marks.data);
    free(reading->pings.data);
    free(reading->pongs.data);
    free(reading->close.data);
}

/* Every pong of `out` answers a ping of `back`, in order; pings may go unanswered (RFC 6455 5.5.3). */
static void check_pongs(const struct reading *out, const struct reading *back) {
    if (out->pongs.length == 0)
        return;
    CHECK(back->pings.length > 0);
    const uint8_t *ping = back->pings.data, *end = ping + back->pings.length;
    const uint8_t *pong = out->pongs.data, *pong_end = pong + out->pongs.length;

    while (pong < pong_end) {
        size_t wanted, found;
        memcpy(&wanted, pong, sizeof wanted);
        for (;;) {
            CHECK(ping < end);
            memcpy(&found, ping, sizeof found);
            bool same = found == wanted && memcmp(ping + sizeof found, pong + sizeof found, found) == 0;
            ping += sizeof found + found;
            if (same)
                break;
        }
        pong += sizeof wanted + wanted;
    }
}

static void check_direction(const struct rc_session *session, const struct story_streams *streams, unsigned direction,
                            const struct reading *in, const struct reading *out) {
    uint8_t source = streams->kinds[direction], destination = streams->kinds[1 - direction];
    bool is_short = session->directions[direction].counters.bytes_out > streams->out[direction].length;
    bool is_cut = streams->closed_by_relay || session->failure != 0 || session->is_aborted;

    CHECK_INT(out->failure, 0);
    CHECK(out->pings.length == 0);
    CHECK(out->data.length <= in->data.length);
    CHECK_BYTES(out->data.data, in->data.data, out->data.length);
    if (!is_cut)
        CHECK_INT(out->data.length, in->data.length);
    if (destination == RC_LEG_RAW)
        return;

    CHECK_INT(out->frames_above_limit, 0);
    CHECK(out->empty_frames <= in->empty_frames);
    if (source == RC_LEG_RAW) {
        CHECK(!out->in_frame || is_short);
    } else {
        /* Message borders; an open message at the end may have lost what the relay's Close kept back. */
        CHECK(out->marks.length <= in->marks.length);
        CHECK_BYTES(out->marks.data, in->marks.data, out->marks.length);
        if (!is_cut) {
            /* A first header whose payload has not begun to arrive is held back, and its piece is not in `in` either. */
            CHECK_INT(out->marks.length, in->marks.length);
            CHECK_INT(out->empty_frames, in->empty_frames);
        }
    }
    if (!is_cut && source != RC_LEG_RAW) {
        CHECK_INT(out->has_close, in->has_close);
        CHECK_INT(out->close.length, in->close.length);
        CHECK_BYTES(out->close.data, in->close.data, in->close.length);
    }
    if (!is_cut && source == RC_LEG_RAW && streams->ended[direction]) {
        CHECK(out->has_close && out->close.length == 2);
        CHECK_BYTES(out->close.data, "\x03\xe8", 2);
    }
}

void story_compare(const struct rc_session *session, const struct story_streams *streams) {
    struct reading in[2], out[2];

    memset(in, 0, sizeof in);
    memset(out, 0, sizeof out);
    for (unsigned d = 0; d < 2; d++) {
        struct rc_direction_counters counters;
        uint16_t close_code;

        if (streams->kinds[d] == RC_LEG_RAW)
            read_raw(&in[d], &streams->in[d]);
        else
            read_ws(&in[d], &streams->in[d], streams->kinds[d] == RC_LEG_WS_SERVER);
        if (streams->kinds[1 - d] == RC_LEG_RAW)
            read_raw(&out[d], &streams->out[d]);
        else
            read_ws(&out[d], &streams->out[d], streams->kinds[1 - d] == RC_LEG_WS_CLIENT);
        rc_session_counters(session, d, &counters, &close_code);
        CHECK(counters.bytes_in <= streams->in[d].length && counters.bytes_out >= streams->out[d].length);
        CHECK(counters.discarded_bytes <= counters.bytes_in);
        if (counters.bytes_out == streams->out[d].length) {
            CHECK_INT(counters.payload_bytes, out[d].data.length);
            if (streams->kinds[1 - d] != RC_LEG_RAW)
                CHECK_INT(close_code, out[d].close.length >= 2 ? out[d].close.data[0] << 8 | out[d].close.data[1] : 0);
        }
    }
    for (unsigned d = 0; d < 2; d++) {
        check_direction(session, streams, d, &in[d], &out[d]);
        check_pongs(&out[d], &in[1 - d]);
    }

    /* A broken rule is found by both or by neither, unless something else ended the session before. */
    if (session->failure != 0) {
        CHECK_INT(in[session->failed_from].failure, session->failure);
    } else if (!streams->closed_by_relay && !session->is_aborted) {
        CHECK_INT(in[0].failure, 0);
        CHECK_INT(in[1].failure, 0);
    }
    for (unsigned d = 0; d < 2; d++) {
        reading_free(&in[d]);
        reading_free(&out[d]);
    }
}

static void check_story(const struct story *story) {
    const struct rc_session *session = &story->session;

    story_compare(session, &story->streams);
    for (unsigned d = 0; d < 2; d++) {
        CHECK_INT(session->directions[d].counters.bytes_in, story->streams.in[d].length);
        CHECK_INT(session->directions[d].counters.bytes_out, story->streams.out[d].length);
    }
    if (session->failure != 0)
        CHECK(story->events[session->failed_from] & RC_STEP_PROTOCOL_ERROR);

    const uint32_t over = RC_STEP_FINISHED | RC_STEP_SOURCE_FINISHED;
    CHECK_INT(rc_session_is_finished(session),
              session->failure == 0 && !session->is_aborted && (story->events[0] & story->events[1] & over) == over);
}

/* One act; returns where the next one begins. */
static const uint8_t *act(struct script *script, const uint8_t *at, const uint8_t *end) {
    struct story_streams *streams = script->streams;
    const struct story_stage *stage = script->stage;
    unsigned direction = *at >> 7;
    uint8_t kind = *at++ & 0x7;
    size_t n = at < end ? *at : 0, k = end - at > 1 ? at[1] : 0;

    switch (kind) {
    case 0:
        at += at < end;
        n = n < (size_t)(end - at) ? n : (size_t)(end - at);
        say(script, direction, at, n);
        return at + n;
    case 1: {
        bool fin = (k & 1) != 0;
        uint8_t opcode = n & 0x80 ? RC_OP_TEXT : RC_OP_BINARY;
        if (script->message_is_open[direction])
            opcode = RC_OP_CONTINUATION;
        script->message_is_open[direction] = !fin;
        size_t payload_bytes = (n & 0x7F) * 1024 + (k >> 1);
        say_frame(script, direction, opcode, fin,
                  payload_bytes < script->frame_max ? payload_bytes : script->frame_max);
        return at + (end - at < 2 ? end - at : 2);
    }
    case 2:
        if (!streams->ended[direction]) {
            streams->ended[direction] = true;
            stage->end(stage->context, direction);
        }
        return at;
    case 3:
        if (stage->ask != NULL)
            stage->ask(stage->context, direction);
        return at;
    case 4:
        streams->closed_by_relay = true;
        stage->close(stage->context);
        return at;
    case 5:
        if (streams->kinds[direction] != RC_LEG_RAW)
            say_frame(script, direction, RC_OP_PING, true, n % 126);
        return at + (at < end);
    case 6:
        if (streams->kinds[direction] != RC_LEG_RAW)
            say_frame(script, direction, RC_OP_CLOSE, true, 5);
        return at;
    default:
        script->cut[direction] = n;
        return at + (at < end);
    }
}

void story_act(const uint8_t *acts, size_t length, size_t frame_max, const struct story_stage *stage,
               struct story_streams *streams) {
    struct script script = {.stage = stage, .streams = streams, .frame_max = frame_max, .cut = {SIZE_MAX, SIZE_MAX}};
    const uint8_t *at = acts, *end = acts + length;

    while (at < end)
        at = act(&script, at, end);
    free(script.held[0].data);
    free(script.held[1].data);
}

void story_play(const uint8_t *script, size_t length, struct story_result *result) {
    static const uint8_t seed[RC_SESSION_SEED_BYTES] = "0123456789abcde";
    static struct rc_guarded slab, source; /* mapped once: a fuzzer comes here a thousand times a second */
    struct story story = {.ended_at = {SIZE_MAX, SIZE_MAX}};
    const struct story_stage stage = {.context = &story,
                                      .send = send_in_memory,
                                      .end = end_in_memory,
                                      .ask = ask_in_memory,
                                      .close = close_in_memory};

    memset(result, 0, sizeof *result);
    if (length < 2)
        return;
    uint8_t sender = script[0] % 3, listener = script[0] / 3 % 3;
    story.streams.kinds[RC_TO_LISTENER] = sender;
    story.streams.kinds[RC_TO_SENDER] = listener;
    story.out_of_place = script[1] & 1;
    story.window = ROOMS[script[1] >> 1 & 7];
    if (slab.pages == NULL) {
        slab = rc_guarded_new(RC_HEADROOM + 65536);
        source = rc_guarded_new(65536);
    }
    story.slab = slab;
    story.source = source;
    CHECK_INT(rc_session_init(&story.session, sender, listener, seed), RC_OK);
    /* Byte by byte, a large frame only costs time. */
    story_act(script + 2, length - 2, story.window * 200 + 600, &stage, &story.streams);
    check_story(&story);

    result->session = story.session;
    for (unsigned d = 0; d < 2; d++) {
        result->output[d] = story.streams.out[d].data;
        result->output_bytes[d] = story.streams.out[d].length;
        result->events[d] = story.events[d];
        free(story.streams.in[d].data);
    }
}

void story_free(struct story_result *result) {
    free(result->output[0]);
    free(result->output[1]);
    memset(result, 0, sizeof *result);
}
