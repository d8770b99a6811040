/* The rules of a joined session: two legs, two directions, no I/O.
 *
 * Whoever moves the bytes (a Trio task, the engine's thread) does three things with this file: hand in what a leg sent, send
 * what comes out to the other leg, and obey the events. Everything else that the wire contract says about a spliced stream
 * (its section 8) is decided in rc_session.c: frames of at most 64 KiB, pings, half-close, abort, who gets which Close.
 *
 * A direction is named by where it leads: RC_TO_LISTENER has the sender's leg as its source and the listener's leg as its
 * destination, RC_TO_SENDER the reverse. All calls name a direction, and all output of that direction goes to its
 * destination, in the order of the calls. Calls for one session must not run at the same time, but for
 * rc_session_counters().
 *
 * Nothing is allocated, nothing is kept that points outside the struct, and one call does work proportional to its input.
 */
#ifndef RC_SESSION_H
#define RC_SESSION_H

#include "rc_decode.h"
#include "rc_pool.h" /* RC_HEADROOM */

/* What we are on a leg. */
enum {
    RC_LEG_WS_SERVER = 0, /* the peer is a WebSocket client: masked in, unmasked out */
    RC_LEG_WS_CLIENT = 1, /* the peer is a WebSocket server: unmasked in, masked out */
    RC_LEG_RAW = 2        /* plain bytes both ways; its end of stream is its Close */
};

enum {
    RC_TO_LISTENER = 0,
    RC_TO_SENDER = 1
};

enum {
    RC_FRAME_MAX = 65536,       /* wire contract 8.2: no larger frame leaves towards a WebSocket peer */
    RC_CLOSE_REASON_MAX = 123,  /* RC_CONTROL_MAX less the code */
    RC_SESSION_SEED_BYTES = 16, /* see rc_session_init() */
    RC_PONGS_BYTES = 128,       /* one Ping of the largest size, or 12 of nine bytes (the Autobahn suite sends ten) */
    RC_SESSION_ROOM_MIN = 160   /* least room for rc_session_translate_from(): a pong, a header and a byte fit */
};

/* What the caller has to do, besides sending the output. Valid from the call that returned it. */
enum {
    RC_STEP_MORE = 1, /* send the output, then call again with the input that was not consumed */
    RC_STEP_CONTROL_OWED_BACK =
        2,                /* the source leg is owed a Pong or Close: rc_session_control() of the other direction */
    RC_STEP_FINISHED = 4, /* nothing will be sent this way any more; a RAW destination needs shutdown(SHUT_WR) */
    RC_STEP_ABORT = 8,    /* cut both legs, without Close */
    RC_STEP_PROTOCOL_ERROR =
        16, /* the source broke RFC 6455: it is owed a Close, if one can still be sent; then cut both */
    RC_STEP_SOURCE_FINISHED =
        32 /* the source leg sent its Close or ended; what it sends from now on is dropped unread */
};

struct rc_step {
    size_t out_offset; /* into the slab, or into `out` */
    size_t out_bytes;  /* to send to the direction's destination; may be 0 */
    size_t consumed;   /* of the input of this call */
    uint32_t events;   /* RC_STEP_* */
};

/* Written by rc_count(): read them with rc_session_counters() while another thread may be inside a call. */
struct rc_direction_counters {
    uint64_t bytes_in;        /* from the source, all of it */
    uint64_t bytes_out;       /* to the destination, all of it */
    uint64_t payload_bytes;   /* of data frames, or raw bytes, passed on */
    uint64_t discarded_bytes; /* of bytes_in: behind the source's Close, or after the relay closed the session */
    uint64_t frames_in;       /* of all kinds; 0 for a RAW source */
    uint64_t frames_out;      /* of all kinds; 0 for a RAW destination */
};

struct rc_direction {
    /* The frame that is being read from the source. */
    struct rc_reader reader;
    uint8_t source, destination; /* RC_LEG_* */
    uint8_t opcode;              /* what the next outgoing piece carries, or the kind of a control frame */
    bool frame_is_open;
    bool fin;
    bool header_is_due; /* the open frame's next piece has no outgoing header yet */
    uint32_t in_key;    /* as the next payload byte needs it; 0 when the source does not mask */
    uint32_t out_key;
    uint64_t in_left; /* payload bytes of the open frame that have not arrived */

    /* The frame that is being written to the destination; 0 bytes left is a frame boundary. */
    uint32_t out_left;

    /* Of the Close that went to the destination; 0: none, or one without a code. Read as the counters are. */
    uint16_t close_code;

    /* Payload of the Ping or Close of the source that is being read; one place does for both. */
    uint8_t control_bytes;

    /* Pongs that the source is owed, as [length][payload] in the order of its Pings. A flood keeps its last ones, which is
     * all that RFC 6455 5.5.3 asks for; none is left once a Close has arrived (5.5.2). */
    uint8_t pongs_bytes;
    bool close_is_due;    /* to the destination: `control` holds the payload of the source's Close */
    bool source_finished; /* Close or end of stream came */
    bool output_finished; /* Close went out, or a RAW destination's shutdown was asked for */
    uint8_t control[RC_CONTROL_MAX];
    uint8_t pongs[RC_PONGS_BYTES];

    struct rc_direction_counters counters;
};

struct rc_session {
    struct rc_direction directions[2];
    uint64_t key_seed[2];
    uint64_t key_count;
    int failure;         /* RC_EPROTO_* of the peer that broke a rule, else 0 */
    uint8_t failed_from; /* the direction that it broke the rule in */
    bool is_closing;     /* rc_session_close() was called */
    bool is_aborted;
    uint8_t relay_close_bytes; /* payload of the relay's own Close, which lies in directions[0].control */
};

/* `seed` are fresh bytes from the system's random source. Mask keys are drawn from them for legs of kind WS_CLIENT: the
 * answer to RFC 6455 5.3, which wants keys that nobody who chooses payloads can foretell. RC_OK or RC_EINVAL (a kind). */
int rc_session_init(struct rc_session *session, unsigned sender, unsigned listener,
                    const uint8_t seed[RC_SESSION_SEED_BYTES]);

/* Bytes of the source, in place: they lie at slab[at .. at + length), at >= RC_HEADROOM, and everything in front of them is
 * free. The output lies in the same slab, never behind the input consumed.
 *
 * With RC_STEP_MORE, send the output, then call again with at + consumed and length - consumed; that call makes progress.
 * Returns RC_OK or RC_EINVAL (at < RC_HEADROOM, or an unknown direction). */
int rc_session_translate(struct rc_session *session, unsigned direction, uint8_t *slab, size_t at, size_t length,
                         struct rc_step *step);

/* The same from anywhere into `out`, which must not overlap the input. RC_EINVAL when room < RC_SESSION_ROOM_MIN. */
int rc_session_translate_from(struct rc_session *session, unsigned direction, const uint8_t *in, size_t length,
                              uint8_t *out, size_t room, struct rc_step *step);

/* A Close with another code than 1000 on its way to a RAW destination is RC_STEP_ABORT as well: what is missing must not look
 * like an end of data.
 *
 * The source's stream has ended. A RAW source: its Close (1000, no reason) goes out, or RC_STEP_FINISHED for a RAW
 * destination. A WebSocket source without Close: RC_STEP_ABORT. Behind a Close it is what one expects.
 * `out` has room for RC_SESSION_ROOM_MIN bytes at least. */
int rc_session_eof(struct rc_session *session, unsigned direction, uint8_t *out, size_t room, struct rc_step *step);

/* What we ourselves owe to the direction's destination: Pongs, our own Close. Empty unless that leg's last output ended at
 * a frame boundary; if not, it will come out of a later translate of this direction. `out` as for rc_session_eof(). */
int rc_session_control(struct rc_session *session, unsigned direction, uint8_t *out, size_t room, struct rc_step *step);

/* Is something owed to the direction's destination, be it at a boundary or not? */
bool rc_session_owes_control(const struct rc_session *session, unsigned direction);

/* Closes both legs from our side: each gets this Close at its next frame boundary (a RAW leg RC_STEP_FINISHED) unless a Close
 * went there already. From then on what a source sends is read and dropped until its own Close. A second call changes
 * nothing; after a protocol error only the text of the offender's Close changes, while it is still owed.
 *
 * Returns RC_OK, or RC_EINVAL when code or reason may not stand in a frame. */
int rc_session_close(struct rc_session *session, uint16_t code, const uint8_t *reason, size_t length);

/* Both sources have finished and both destinations have been told. False for ever after an abort or a protocol error. */
bool rc_session_is_finished(const struct rc_session *session);

/* A snapshot of a direction's counters and its `close_code`, at any time and in any thread: each number is whole, but they
 * need not be of the same instant. All zero for an unknown direction. */
void rc_session_counters(const struct rc_session *session, unsigned direction, struct rc_direction_counters *counters,
                         uint16_t *close_code);

#endif
