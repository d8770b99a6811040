/* RFC 6455 5.2: frame headers, one at a time, and the two checks on close payloads. No state, no allocation. */
#ifndef RC_FRAME_H
#define RC_FRAME_H

#include "rc_base.h"

enum {
    RC_OP_CONTINUATION = 0x0,
    RC_OP_TEXT = 0x1,
    RC_OP_BINARY = 0x2,
    RC_OP_CLOSE = 0x8,
    RC_OP_PING = 0x9,
    RC_OP_PONG = 0xA,

    RC_HEADER_MAX = 14,  /* 2 + 8 length + 4 key */
    RC_CONTROL_MAX = 125 /* RFC 6455 5.5 */
};

struct rc_frame {
    uint64_t payload_bytes;
    uint8_t key[4]; /* in the order of the wire; zero when not masked */
    uint8_t opcode;
    bool fin;
    bool masked;
};

static inline bool rc_opcode_is_control(uint8_t opcode) {
    return (opcode & 0x8) != 0;
}

/* Reads the header that begins at `data`, of which `length` bytes are there.
 *
 * `masked` says who the peer is: a client masks every frame, a server none (5.1).
 *
 * Returns the bytes of the header (2..14), with `*frame` filled in; RC_NEED_MORE when the bytes at hand are fine as far as
 * they go (call again with the same bytes and more behind them); or RC_EPROTO_*, which is returned as soon as the bytes at
 * hand prove it. `*frame` is zeroed first and is only complete when a length was returned. */
int rc_frame_parse(struct rc_frame *frame, const uint8_t *data, size_t length, bool masked);

/* Bytes that the header of such a frame takes: 2..14. */
static inline size_t rc_frame_header_bytes(uint64_t payload_bytes, bool masked) {
    return (payload_bytes < 126 ? 2u : payload_bytes <= 0xFFFF ? 4u : 10u) + (masked ? 4u : 0u);
}

/* Writes the header of `frame` to `out`, lengths in their shortest form, RSV 0.
 *
 * Returns its bytes; RC_EINVAL when `room` is too small, the opcode is unknown, the length has its top bit set, or a control
 * frame is too long or not final. Nothing is written then. */
int rc_frame_build(uint8_t *out, size_t room, const struct rc_frame *frame);

/* Is the payload of a Close frame one that may stand there? (RFC 6455 5.5.1, 7.4)
 *
 * Returns RC_OK or RC_EPROTO_CLOSE_*. On RC_OK `*code` is the close code, or 0 for an empty payload. */
int rc_close_check(const uint8_t *payload, size_t length, uint16_t *code);

/* May this code stand in a Close frame: 1000-1003, 1007-1014 and 3000-4999. The codes between are reserved for use without
 * a frame (1005, 1006, 1015), undefined (1004), or not given out. */
bool rc_close_code_is_valid(uint16_t code);

/* Is this whole text UTF-8: no surrogates, no overlong forms, nothing above U+10FFFF? */
bool rc_utf8_is_valid(const uint8_t *text, size_t length);

#endif
