/* Frames out of a byte stream that is cut anywhere: the state of one incoming leg.
 *
 * rc_reader is the part that a decoder and a session share: headers that arrive in pieces, and the order in which frames
 * may follow one another (RFC 6455 5.4). rc_decoder adds payloads, for legs whose messages somebody wants to see.
 *
 * Both are plain structs that the caller allocates; nothing in them points anywhere.
 */
#ifndef RC_DECODE_H
#define RC_DECODE_H

#include "rc_frame.h"

struct rc_reader {
    uint8_t header[RC_HEADER_MAX]; /* the beginning of a header whose end has not arrived */
    uint8_t header_bytes;
    bool masked;     /* the peer is a client */
    bool in_message; /* a data frame without FIN was the last data frame */
};

void rc_reader_init(struct rc_reader *reader, bool masked);

/* Takes one header from `*at` on, but never from `end` on, and moves `*at` behind what it took.
 *
 * Returns 1 with `*frame` filled in; RC_NEED_MORE when the input is used up (the beginning of a header is kept in the
 * reader); or RC_EPROTO_*, after which the reader must not be used again. */
int rc_reader_next(struct rc_reader *reader, const uint8_t **at, const uint8_t *end, struct rc_frame *frame);

/* One run of payload. A frame of data comes as one or more pieces, as its bytes arrive; a control frame always as one. An
 * empty frame is one empty piece. */
struct rc_piece {
    uint32_t offset; /* into the `out` of the call */
    uint32_t length;
    uint8_t opcode; /* 1 or 2: first piece of a message, 0: a later one; 8, 9, 10: control */
    bool fin;       /* last piece of the message; always true for control */
};

struct rc_decoder {
    struct rc_reader reader;
    uint64_t left;  /* payload bytes of the open frame that have not arrived */
    uint32_t key;   /* as the next payload byte needs it */
    uint8_t opcode; /* what the next piece of the open frame carries */
    bool frame_is_open;
    bool fin;
    bool is_closed; /* a Close frame arrived: what follows is counted and dropped (RFC 6455 5.5.1) */
    int failure;    /* RC_EPROTO_* once seen; every later call returns it again */
    uint16_t control_bytes;
    uint8_t control[RC_CONTROL_MAX];
    uint64_t frames;          /* headers read, of all kinds */
    uint64_t discarded_bytes; /* behind a Close */
};

void rc_decoder_init(struct rc_decoder *decoder, bool masked);

/* Decodes `length` bytes at `in`. Unmasked payloads are packed from `out` on, which has `out_room` bytes; less than
 * length + RC_CONTROL_MAX is RC_EINVAL, because a control frame that began in earlier calls brings up to that much with it.
 * For the same reason the two areas may overlap only with out + RC_CONTROL_MAX <= in: received behind head-room, the
 * payloads may be unmasked in place.
 *
 * Returns the number of pieces written to `pieces`, in the order of the stream. `*consumed` < length means that all `room`
 * pieces were used: call again with the rest. When the peer breaks a rule, `decoder->failure` is set, the input counts as
 * consumed, and the pieces in front of the error are returned; the code itself is returned when there are none, and by every
 * later call. */
int rc_decode(struct rc_decoder *decoder, const uint8_t *in, size_t length, uint8_t *out, size_t out_room,
              struct rc_piece *pieces, size_t room, size_t *consumed);

#endif
