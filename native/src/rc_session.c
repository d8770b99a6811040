/* Theory of operation
 *
 * 1. Two directions, one function
 *
 * Each direction reads frames from its source and writes frames to its destination. run() does both in one pass over the
 * input: it reads a header, writes the header that the destination needs, and copies the payload while changing its mask.
 *
 *               source                         destination
 *      WS_SERVER  masked     [hdr][key][data]        WS_SERVER  unmasked   [hdr][data]
 *      WS_CLIENT  unmasked   [hdr][data]             WS_CLIENT  masked     [hdr][key'][data]
 *      RAW                   [data]                  RAW                   [data]
 *
 * Removing one mask and putting on another is a single XOR with key ^ key'; a payload that needs no mask has key 0.
 *
 * 2. Output is contiguous and in place
 *
 * The output goes into the buffer that the input came in, so that a relayed byte is touched once. Two cursors move upward:
 *
 *      slab         out                   in                     end
 *      |  head-room  |oooooooooooooooo     |iiiiiiiiiiiiiiiiiiiiii|
 *                                     ^writes here                        out never passes in
 *
 * Payloads move down only, and rc_mask() allows just that overlap. What makes the output longer than the input is headers:
 *
 *   - a header that began in the previous receive: this receive brings as little as its last byte, and the outgoing header
 *     takes up to 14 (the prototype, without head-room, overwrote payload here);
 *   - splitting: a header in the middle of a large frame;
 *   - masking: 4 bytes more for each frame from a WS_CLIENT leg to a WS_CLIENT leg, for any number of small frames;
 *   - Pongs or a Close of our own: up to 131 each.
 *
 * Head-room of RC_HEADROOM takes the first, one of the second and one of the last together (14 + 14 + 131 < 192). Only the
 * third, and several Pongs at once, can use up any head-room; then the call stops with RC_STEP_MORE, the output is sent,
 * and the next call begins at the bottom of the slab with all the room that consumed input has left. That room grows by
 * each such round, so a full 64 KiB of empty frames takes about a dozen rounds and not thousands.
 *
 * 3. Where the first output of a call is put
 *
 * At the bottom of the slab when frames grow. Otherwise right against its payload, so that the first payload stays where it
 * is: a receive that holds one frame, or the middle of one, moves no byte (and touches none, when no mask changes):
 *
 *      [   head-room   ][hdr 2..10][key 4][payload ...]        as received
 *      [   head-room       ][hdr 2..10][payload ...]           as sent
 *
 * 4. Frame boundaries
 *
 * A frame of at most RC_FRAME_MAX bytes goes out as one frame. A larger one goes out as pieces of RC_FRAME_MAX, the last one
 * shorter but never empty, because a piece is only begun for bytes that the source's header has promised. Its header waits
 * until the first of these bytes is here: a header alone would cost a send and would shut out Pongs for nothing.
 *
 * Incoming frames and outgoing pieces begin and end together, so the end of an incoming frame always is an outgoing
 * boundary, and control frames of the source are met at boundaries only. Frames of our own go out when out_left == 0, which
 * may be between two pieces of a message: RFC 6455 5.4 allows control frames there.
 *
 *      out_left  0        n ... 1        0        n ... 1        0
 *               ──┬───[hdr][piece 1]─────┬───[hdr][piece 2]──────┬──▶
 *              Pong, Close             Pong, Close             Pong, Close
 *
 * 5. How a direction ends
 *
 *                        source's Close / RAW end                    our Close out
 *      open ──────────────────────────────────▶ close_is_due ─────────────────────▶ output_finished
 *        │                                        (source_finished)                       ▲
 *        ├── rc_session_close() ──▶ at the next boundary our own Close ───────────────────┤
 *        │                                 source is read on and dropped until source_finished
 *        ├── WS end without Close, or a Close for RAW that is not 1000 ──▶ is_aborted: nothing more in or out
 *        └── broken rule ──▶ failure: the source gets our Close from the *other* direction, at a boundary; nothing else
 *
 * The opposite direction does not care how this one ended, unless the session aborted or failed. That is the half-close.
 */
#include "rc_session.h"

#include "rc_mask.h"

#include <string.h>

_Static_assert((int)RC_SESSION_ROOM_MIN <= (int)RC_HEADROOM, "what fits a small output must fit the head-room");
_Static_assert((int)RC_SESSION_ROOM_MIN > 6 + (int)RC_CONTROL_MAX + (int)RC_HEADER_MAX,
               "a control frame, a header and a byte");
_Static_assert(2 * (int)RC_HEADER_MAX + 6 + (int)RC_CONTROL_MAX < (int)RC_HEADROOM, "see 2 above");
_Static_assert((int)RC_PONGS_BYTES >= 1 + (int)RC_CONTROL_MAX && (int)RC_PONGS_BYTES <= UINT8_MAX, "see owe_pong()");

/* Where one call reads and writes. */
struct cursor {
    const uint8_t *in, *end;
    uint8_t *bottom; /* lowest place that output may begin at */
    uint8_t *first;  /* where the output of this call began; NULL before its first byte */
    uint8_t *out;
    uint8_t *limit; /* out of place: end of the room; in place: NULL, the limit is `in` */
    uint32_t events;
};

static bool is_ws(uint8_t leg) {
    return leg != RC_LEG_RAW;
}

static struct rc_direction *opposite(struct rc_session *session, const struct rc_direction *direction) {
    return &session->directions[direction == &session->directions[0]];
}

/* SipHash-1-3 of a counter, with the seed as its key: 64 unforeseeable bits, of which one key takes half. */
static uint32_t draw_key(struct rc_session *session) {
    uint64_t count = session->key_count++;
    uint64_t v0 = session->key_seed[0] ^ 0x736f6d6570736575u, v1 = session->key_seed[1] ^ 0x646f72616e646f6du;
    uint64_t v2 = session->key_seed[0] ^ 0x6c7967656e657261u, v3 = session->key_seed[1] ^ 0x7465646279746573u;
    const uint64_t blocks[2] = {count, (uint64_t)sizeof count << 56};

#define ROTATE(word, bits) ((word) << (bits) | (word) >> (64 - (bits)))
    for (int round = 0; round < 5; round++) {
        if (round < 2)
            v3 ^= blocks[round];
        if (round == 2)
            v2 ^= 0xff;
        v0 += v1, v1 = ROTATE(v1, 13) ^ v0, v0 = ROTATE(v0, 32);
        v2 += v3, v3 = ROTATE(v3, 16) ^ v2;
        v0 += v3, v3 = ROTATE(v3, 21) ^ v0;
        v2 += v1, v1 = ROTATE(v1, 17) ^ v2, v2 = ROTATE(v2, 32);
        if (round < 2)
            v0 ^= blocks[round];
    }
#undef ROTATE
    return (uint32_t)(v0 ^ v1 ^ v2 ^ v3);
}

/* Bytes that may be written before the input, or the end of the room, is run into. */
static size_t room_of(const struct cursor *c) {
    return c->limit != NULL ? (size_t)(c->limit - c->out) : (size_t)(c->in - c->out);
}

/* Puts the first output of an in-place call at `place`; later output follows what is there. */
static void begin_output(struct cursor *c, const uint8_t *place) {
    if (c->first != NULL)
        return;
    if (c->limit == NULL) {
        RC_ASSERT(place >= c->bottom);
        c->out = c->bottom + (place - c->bottom);
    }
    c->first = c->out;
}

/* Writes a whole control frame. False when there is no room for it now. */
static bool put_control(struct rc_session *session, struct rc_direction *direction, struct cursor *c, uint8_t opcode,
                        const uint8_t *payload, size_t length) {
    struct rc_frame frame = {.payload_bytes = length, .opcode = opcode, .fin = true};
    uint32_t key = 0;

    if (direction->destination == RC_LEG_WS_CLIENT) {
        frame.masked = true;
        key = draw_key(session);
        rc_mask_store(frame.key, key);
    }
    begin_output(c, c->bottom);
    if (room_of(c) < 6 + length)
        return false;
    int header_bytes = rc_frame_build(c->out, room_of(c), &frame);
    RC_ASSERT(header_bytes > 0);
    c->out += header_bytes;
    rc_mask(c->out, payload, length, key);
    c->out += length;
    rc_count(&direction->counters.frames_out, 1);
    return true;
}

static void finish_output(struct rc_direction *direction, struct cursor *c) {
    direction->output_finished = true;
    direction->close_is_due = false;
    c->events |= RC_STEP_FINISHED;
}

/* Of a destination that can still be sent something: is it owed our own Close? Both are when the relay closes, the offender
 * alone is after a broken rule. */
static bool owes_relay_close(const struct rc_session *session, unsigned index) {
    return session->failure != 0 ? index != session->failed_from : session->is_closing;
}

static bool owes_anything(const struct rc_session *session, unsigned index) {
    const struct rc_direction *direction = &session->directions[index], *back = &session->directions[1 - index];

    if (direction->output_finished || session->is_aborted)
        return false;
    if (owes_relay_close(session, index))
        return true;
    return session->failure == 0 && (back->pongs_bytes > 0 || direction->close_is_due);
}

static void drop_oldest_pong(struct rc_direction *direction) {
    size_t bytes = 1 + (size_t)direction->pongs[0];

    RC_ASSERT(bytes <= direction->pongs_bytes);
    direction->pongs_bytes -= (uint8_t)bytes;
    memmove(direction->pongs, direction->pongs + bytes, direction->pongs_bytes);
}

/* The source's Ping has been read. Ends because each turn frees something and one Ping always fits into the empty room. */
static void owe_pong(struct rc_direction *direction) {
    while (sizeof direction->pongs - direction->pongs_bytes < 1 + (size_t)direction->control_bytes)
        drop_oldest_pong(direction);
    uint8_t *pong = direction->pongs + direction->pongs_bytes;
    pong[0] = direction->control_bytes;
    memcpy(pong + 1, direction->control, direction->control_bytes);
    direction->pongs_bytes += (uint8_t)(1 + direction->control_bytes);
}

/* Writes what stands before any data: our own Close, a Pong, the source's Close. The caller saw to it that this is a frame
 * boundary. False when there is no room. */
static bool put_owed(struct rc_session *session, struct rc_direction *direction, struct cursor *c) {
    struct rc_direction *back = opposite(session, direction);
    const uint8_t *payload = direction->control;
    size_t length = direction->control_bytes;

    if (owes_relay_close(session, (unsigned)(direction - session->directions))) {
        payload = session->directions[0].control;
        length = session->relay_close_bytes;
    } else if (back->pongs_bytes > 0) {
        if (!put_control(session, direction, c, RC_OP_PONG, back->pongs + 1, back->pongs[0]))
            return false;
        drop_oldest_pong(back);
        return true;
    }
    if (is_ws(direction->destination) && !put_control(session, direction, c, RC_OP_CLOSE, payload, length))
        return false;
    uint16_t code = (uint16_t)(length >= 2 ? payload[0] << 8 | payload[1] : 0);
    __atomic_store_n(&direction->close_code, code, __ATOMIC_RELAXED);
    finish_output(direction, c);
    return true;
}

/* The source has nothing more to say: a Ping of its is not answered any more (RFC 6455 5.5.2), and run() drops the rest. */
static void finish_source(struct rc_direction *direction, struct cursor *c) {
    direction->source_finished = true;
    direction->frame_is_open = false;
    direction->pongs_bytes = 0;
    c->events = (c->events & ~(uint32_t)RC_STEP_CONTROL_OWED_BACK) | RC_STEP_SOURCE_FINISHED;
}

static void set_relay_close(struct rc_session *session, uint16_t code, const uint8_t *reason, size_t length) {
    uint8_t *payload = session->directions[0].control;

    /* No Ping or Close that lies there is wanted any more: see owes_relay_close() and gather_control(). */
    session->directions[0].pongs_bytes = session->directions[1].pongs_bytes = 0;
    payload[0] = (uint8_t)(code >> 8);
    payload[1] = (uint8_t)code;
    if (length > 0)
        memcpy(payload + 2, reason, length);
    session->relay_close_bytes = (uint8_t)(2 + length);
}

static void fail(struct rc_session *session, struct rc_direction *direction, struct cursor *c, int failure) {
    const struct rc_direction *back = opposite(session, direction);

    finish_source(direction, c);
    if (session->is_closing) /* it gets our Close, or has it; how it takes leave does not matter */
        return;
    session->failure = failure;
    session->failed_from = (uint8_t)(direction - session->directions);
    set_relay_close(session, rc_close_code(failure), NULL, 0);
    c->events |= RC_STEP_PROTOCOL_ERROR;
    if (!back->output_finished && back->out_left == 0)
        c->events |= RC_STEP_CONTROL_OWED_BACK;
}

/* Opens the frame whose header has been read. */
static void open_frame(struct rc_session *session, struct rc_direction *direction, const struct rc_frame *frame) {
    rc_count(&direction->counters.frames_in, 1);
    direction->frame_is_open = true;
    direction->in_left = frame->payload_bytes;
    direction->in_key = rc_mask_load(frame->key);
    direction->opcode = frame->opcode;
    direction->fin = frame->fin;
    direction->header_is_due = is_ws(direction->destination);
    if ((frame->opcode == RC_OP_PING || frame->opcode == RC_OP_CLOSE) && !session->is_closing)
        direction->control_bytes = 0;
}

/* A RAW source has no frames: what one receive brought becomes a binary message, or several of the largest size. */
static void open_raw(struct rc_direction *direction, const struct cursor *c) {
    size_t length = (size_t)(c->end - c->in);

    direction->frame_is_open = true;
    direction->in_left = length < RC_FRAME_MAX ? length : RC_FRAME_MAX;
    direction->in_key = 0;
    direction->opcode = RC_OP_BINARY;
    direction->fin = true;
    direction->header_is_due = is_ws(direction->destination);
}

static void take(struct rc_direction *direction, struct cursor *c, size_t count) {
    c->in += count;
    direction->in_left -= count;
    direction->in_key = rc_mask_rotate(direction->in_key, count);
}

static uint16_t close_code_in(const struct rc_direction *direction) {
    return (uint16_t)(direction->control_bytes >= 2 ? direction->control[0] << 8 | direction->control[1] : 0);
}

/* Whether the Close that has just come means that data are missing. A WebSocket is told its code; bytes have no word for it
 * but a reset, and an end of data would be a lie (connection manager 8.5). */
static bool is_torn_end(const struct rc_session *session, const struct rc_direction *direction) {
    uint16_t code = close_code_in(direction);

    return !is_ws(direction->destination) && !session->is_closing && !direction->output_finished && code != 0 &&
           code != 1000;
}

/* Payload of a control frame of the source. Control frames are never passed on but for Close. */
static void gather_control(struct rc_session *session, struct rc_direction *direction, struct cursor *c) {
    size_t here = (size_t)(c->end - c->in);
    size_t count = direction->in_left < here ? (size_t)direction->in_left : here;

    /* Once we have closed, the source's Pings need no answer and its Close goes nowhere; their place holds our own Close. */
    if (direction->opcode != RC_OP_PONG && !session->is_closing) {
        RC_ASSERT(count <= sizeof direction->control - direction->control_bytes);
        rc_mask(direction->control + direction->control_bytes, c->in, count, direction->in_key);
        direction->control_bytes += (uint8_t)count;
    }
    take(direction, c, count);
    if (direction->in_left > 0)
        return;

    direction->frame_is_open = false;
    if (direction->opcode == RC_OP_PING && !session->is_closing && !opposite(session, direction)->output_finished) {
        owe_pong(direction);
        c->events |= RC_STEP_CONTROL_OWED_BACK;
    }
    if (direction->opcode == RC_OP_CLOSE) {
        uint16_t code;
        int result = session->is_closing ? RC_OK : rc_close_check(direction->control, direction->control_bytes, &code);
        if (result != RC_OK) {
            fail(session, direction, c, result);
            return;
        }
        finish_source(direction, c);
        if (is_torn_end(session, direction)) {
            __atomic_store_n(&direction->close_code, close_code_in(direction), __ATOMIC_RELAXED);
            session->is_aborted = true;
            c->events |= RC_STEP_ABORT;
            return;
        }
        direction->close_is_due = !direction->output_finished;
    }
}

/* Payload of a data frame, and the header in front of it. False when there is no room. */
static bool forward_data(struct rc_session *session, struct rc_direction *direction, struct cursor *c) {
    bool in_place = c->limit == NULL;
    bool masks = direction->destination == RC_LEG_WS_CLIENT;
    size_t here = (size_t)(c->end - c->in);
    size_t piece = direction->out_left, header_bytes = 0;

    if (!is_ws(direction->destination)) {
        piece = direction->in_left < here ? (size_t)direction->in_left : here;
    } else if (direction->header_is_due) {
        piece = direction->in_left < RC_FRAME_MAX ? (size_t)direction->in_left : RC_FRAME_MAX;
        header_bytes = rc_frame_header_bytes(piece, masks);
    }
    if (c->first == NULL && in_place) {
        bool grows = masks && direction->source == RC_LEG_WS_CLIENT;
        size_t gap = header_bytes + (here > piece ? RC_HEADER_MAX : 0); /* the piece ends here: another may follow */
        begin_output(c, grows ? c->bottom : c->in - gap);
    }
    begin_output(c, c->bottom);

    if (header_bytes > 0) {
        if (room_of(c) < header_bytes)
            return false;
        struct rc_frame frame = {.payload_bytes = piece, .opcode = direction->opcode, .masked = masks};
        frame.fin = direction->fin && piece == direction->in_left;
        direction->out_key = masks ? draw_key(session) : 0;
        rc_mask_store(frame.key, direction->out_key);
        int built = rc_frame_build(c->out, room_of(c), &frame);
        RC_ASSERT(built == (int)header_bytes);
        c->out += header_bytes;
        direction->out_left = (uint32_t)piece;
        direction->opcode = RC_OP_CONTINUATION;
        direction->header_is_due = false;
        rc_count(&direction->counters.frames_out, 1);
    }

    size_t count = piece < here ? piece : here;
    if (!in_place && count > room_of(c)) {
        count = room_of(c);
        if (count == 0)
            return false;
    }
    rc_mask(c->out, c->in, count, direction->in_key ^ direction->out_key);
    c->out += count;
    take(direction, c, count);
    rc_count(&direction->counters.payload_bytes, count);
    if (is_ws(direction->destination)) {
        direction->out_key = rc_mask_rotate(direction->out_key, count);
        direction->out_left -= (uint32_t)count;
        direction->header_is_due = direction->out_left == 0;
    }
    direction->frame_is_open = direction->in_left > 0;
    return true;
}

static void drop_payload(struct rc_direction *direction, struct cursor *c) {
    size_t here = (size_t)(c->end - c->in);
    size_t count = direction->in_left < here ? (size_t)direction->in_left : here;

    rc_count(&direction->counters.discarded_bytes, count);
    take(direction, c, count);
    direction->frame_is_open = direction->in_left > 0;
}

/* One pass over the input. Each turn writes a frame that was owed, takes input, ends a frame or leaves: the number of turns
 * is at most proportional to the input. */
static void run(struct rc_session *session, struct rc_direction *direction, struct cursor *c) {
    unsigned index = (unsigned)(direction - session->directions);

    for (;;) {
        if (session->is_aborted || session->failure != 0 || direction->source_finished) {
            rc_count(&direction->counters.discarded_bytes, (uint64_t)(c->end - c->in));
            c->in = c->end;
            direction->frame_is_open = false;
        }
        if (direction->out_left == 0 && owes_anything(session, index)) {
            if (!put_owed(session, direction, c)) {
                c->events |= RC_STEP_MORE;
                return;
            }
            continue;
        }
        if (c->in == c->end && !(direction->frame_is_open && direction->in_left == 0))
            return;

        if (!direction->frame_is_open) {
            struct rc_frame frame;
            if (!is_ws(direction->source)) {
                open_raw(direction, c);
                continue;
            }
            int result = rc_reader_next(&direction->reader, &c->in, c->end, &frame);
            if (result == RC_NEED_MORE)
                return;
            if (result < 0)
                fail(session, direction, c, result);
            else
                open_frame(session, direction, &frame);
        } else if (rc_opcode_is_control(direction->opcode)) {
            gather_control(session, direction, c);
        } else if (direction->output_finished) {
            drop_payload(direction, c);
        } else if (!forward_data(session, direction, c)) {
            c->events |= RC_STEP_MORE;
            return;
        }
    }
}

static void step_from(struct rc_direction *direction, const struct cursor *c, const uint8_t *in, struct rc_step *step) {
    if (c->first != NULL) {
        step->out_offset = (size_t)(c->first - c->bottom);
        step->out_bytes = (size_t)(c->out - c->first);
    }
    step->consumed = (size_t)(c->in - in);
    step->events = c->events;
    rc_count(&direction->counters.bytes_in, step->consumed);
    rc_count(&direction->counters.bytes_out, step->out_bytes);
}

int rc_session_init(struct rc_session *session, unsigned sender, unsigned listener,
                    const uint8_t seed[RC_SESSION_SEED_BYTES]) {
    memset(session, 0, sizeof *session);
    if (sender > RC_LEG_RAW || listener > RC_LEG_RAW)
        return RC_EINVAL;
    memcpy(session->key_seed, seed, sizeof session->key_seed);
    session->directions[RC_TO_LISTENER].source = session->directions[RC_TO_SENDER].destination = (uint8_t)sender;
    session->directions[RC_TO_LISTENER].destination = session->directions[RC_TO_SENDER].source = (uint8_t)listener;
    for (int i = 0; i < 2; i++)
        rc_reader_init(&session->directions[i].reader, session->directions[i].source == RC_LEG_WS_SERVER);
    return RC_OK;
}

int rc_session_translate(struct rc_session *session, unsigned direction, uint8_t *slab, size_t at, size_t length,
                         struct rc_step *step) {
    memset(step, 0, sizeof *step);
    if (direction > RC_TO_SENDER || at < RC_HEADROOM)
        return RC_EINVAL;
    struct cursor c = {.in = slab + at, .end = slab + at + length, .bottom = slab, .out = slab};
    run(session, &session->directions[direction], &c);
    RC_ASSERT(c.out <= c.in);
    step_from(&session->directions[direction], &c, slab + at, step);
    return RC_OK;
}

int rc_session_translate_from(struct rc_session *session, unsigned direction, const uint8_t *in, size_t length,
                              uint8_t *out, size_t room, struct rc_step *step) {
    memset(step, 0, sizeof *step);
    if (direction > RC_TO_SENDER || room < RC_SESSION_ROOM_MIN)
        return RC_EINVAL;
    struct cursor c = {.in = in, .end = in + length, .bottom = out, .out = out, .limit = out + room};
    run(session, &session->directions[direction], &c);
    RC_ASSERT(c.out <= c.limit);
    step_from(&session->directions[direction], &c, in, step);
    return RC_OK;
}

int rc_session_eof(struct rc_session *session, unsigned direction, uint8_t *out, size_t room, struct rc_step *step) {
    memset(step, 0, sizeof *step);
    if (direction > RC_TO_SENDER || room < RC_SESSION_ROOM_MIN)
        return RC_EINVAL;

    struct rc_direction *d = &session->directions[direction];
    struct cursor c = {.in = out, .end = out, .bottom = out, .out = out, .limit = out + room};
    if (!d->source_finished && !session->is_aborted && session->failure == 0) {
        /* Half a frame cannot be finished any more, and without Close nobody may take this for a clean end (spec 8.8). */
        bool cut = (d->out_left > 0 && !d->output_finished) || (is_ws(d->source) && !session->is_closing);
        finish_source(d, &c);
        if (cut) {
            session->is_aborted = true;
            c.events |= RC_STEP_ABORT;
        } else if (!d->output_finished && !session->is_closing) {
            d->control[0] = 1000 >> 8;
            d->control[1] = 1000 & 0xFF;
            d->control_bytes = 2;
            d->close_is_due = true;
        }
    }
    run(session, d, &c);
    step_from(d, &c, out, step);
    return RC_OK;
}

int rc_session_control(struct rc_session *session, unsigned direction, uint8_t *out, size_t room,
                       struct rc_step *step) {
    return rc_session_translate_from(session, direction, out, 0, out, room, step);
}

bool rc_session_owes_control(const struct rc_session *session, unsigned direction) {
    return direction <= RC_TO_SENDER && owes_anything(session, direction);
}

int rc_session_close(struct rc_session *session, uint16_t code, const uint8_t *reason, size_t length) {
    if (!rc_close_code_is_valid(code) || length > RC_CLOSE_REASON_MAX || !rc_utf8_is_valid(reason, length))
        return RC_EINVAL;
    if (session->is_closing || session->is_aborted)
        return RC_OK;
    set_relay_close(session, code, reason, length);
    session->is_closing = session->failure == 0;
    return RC_OK;
}

bool rc_session_is_finished(const struct rc_session *session) {
    const struct rc_direction *a = &session->directions[0], *b = &session->directions[1];

    return session->failure == 0 && !session->is_aborted && a->source_finished && a->output_finished &&
           b->source_finished && b->output_finished;
}

void rc_session_counters(const struct rc_session *session, unsigned direction, struct rc_direction_counters *counters,
                         uint16_t *close_code) {
    memset(counters, 0, sizeof *counters);
    *close_code = 0;
    if (direction > RC_TO_SENDER)
        return;
    const struct rc_direction *d = &session->directions[direction];

    counters->bytes_in = rc_counted(&d->counters.bytes_in);
    counters->bytes_out = rc_counted(&d->counters.bytes_out);
    counters->payload_bytes = rc_counted(&d->counters.payload_bytes);
    counters->discarded_bytes = rc_counted(&d->counters.discarded_bytes);
    counters->frames_in = rc_counted(&d->counters.frames_in);
    counters->frames_out = rc_counted(&d->counters.frames_out);
    *close_code = __atomic_load_n(&d->close_code, __ATOMIC_RELAXED);
}
