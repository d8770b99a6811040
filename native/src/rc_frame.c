#include "rc_frame.h"

#include <string.h>

int rc_frame_parse(struct rc_frame *frame, const uint8_t *data, size_t length, bool masked) {
    memset(frame, 0, sizeof *frame);
    if (length < 1)
        return RC_NEED_MORE;

    uint8_t first = data[0];
    uint8_t opcode = first & 0x0F;
    bool fin = (first & 0x80) != 0;
    if (first & 0x70)
        return RC_EPROTO_RSV;
    if ((opcode & 0x7) > RC_OP_BINARY) /* 3-7 and 11-15: the three low bits tell for both halves */
        return RC_EPROTO_OPCODE;
    if (rc_opcode_is_control(opcode) && !fin)
        return RC_EPROTO_FRAGMENTED;
    if (length < 2)
        return RC_NEED_MORE;

    uint8_t short_length = data[1] & 0x7F;
    bool is_masked = (data[1] & 0x80) != 0;
    if (is_masked != masked)
        return masked ? RC_EPROTO_UNMASKED : RC_EPROTO_MASKED;
    if (rc_opcode_is_control(opcode) && short_length > RC_CONTROL_MAX)
        return RC_EPROTO_CONTROL_LENGTH;

    size_t at = 2;
    uint64_t payload_bytes = short_length;
    if (short_length >= 126) {
        size_t width = short_length == 126 ? 2 : 8;
        size_t here = length - at < width ? length - at : width;

        payload_bytes = 0;
        for (size_t i = 0; i < here; i++)
            payload_bytes = payload_bytes << 8 | data[at + i];
        if (width == 8 && here > 0 && (data[at] & 0x80))
            return RC_EPROTO_LENGTH;
        if (here < width)
            return RC_NEED_MORE;
        if (payload_bytes < (width == 2 ? 126u : 0x10000u))
            return RC_EPROTO_LENGTH;
        at += width;
    }
    if (masked) {
        if (length - at < 4)
            return RC_NEED_MORE;
        memcpy(frame->key, data + at, 4);
        at += 4;
    }
    frame->payload_bytes = payload_bytes;
    frame->opcode = opcode;
    frame->fin = fin;
    frame->masked = masked;
    return (int)at;
}

int rc_frame_build(uint8_t *out, size_t room, const struct rc_frame *frame) {
    uint64_t payload_bytes = frame->payload_bytes;
    size_t header_bytes = rc_frame_header_bytes(payload_bytes, frame->masked);

    if (room < header_bytes || frame->opcode > RC_OP_PONG || (frame->opcode & 0x7) > RC_OP_BINARY ||
        payload_bytes >> 63)
        return RC_EINVAL;
    if (rc_opcode_is_control(frame->opcode) && (payload_bytes > RC_CONTROL_MAX || !frame->fin))
        return RC_EINVAL;

    uint8_t mask_bit = frame->masked ? 0x80 : 0;
    *out++ = (uint8_t)((frame->fin ? 0x80 : 0) | frame->opcode);
    if (payload_bytes < 126) {
        *out++ = (uint8_t)(mask_bit | payload_bytes);
    } else {
        size_t width = payload_bytes <= 0xFFFF ? 2 : 8;
        *out++ = (uint8_t)(mask_bit | (width == 2 ? 126 : 127));
        for (size_t i = width; i-- > 0;)
            *out++ = (uint8_t)(payload_bytes >> (8 * i));
    }
    if (frame->masked)
        memcpy(out, frame->key, 4);
    return (int)header_bytes;
}

bool rc_close_code_is_valid(uint16_t code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

int rc_close_check(const uint8_t *payload, size_t length, uint16_t *code) {
    *code = 0;
    if (length == 0)
        return RC_OK;
    if (length == 1)
        return RC_EPROTO_CLOSE_LENGTH;
    uint16_t value = (uint16_t)(payload[0] << 8 | payload[1]);
    if (!rc_close_code_is_valid(value))
        return RC_EPROTO_CLOSE_CODE;
    if (!rc_utf8_is_valid(payload + 2, length - 2))
        return RC_EPROTO_CLOSE_UTF8;
    *code = value;
    return RC_OK;
}

bool rc_utf8_is_valid(const uint8_t *text, size_t length) {
    if (length == 0)
        return true;
    const uint8_t *end = text + length;

    while (text < end) {
        uint8_t lead = *text++;
        if (lead < 0x80)
            continue;

        /* Unicode table 3-7: only the second byte has a range of its own, and only behind these four leads. */
        size_t follow;
        uint8_t low = 0x80, high = 0xBF;
        if (lead >= 0xC2 && lead <= 0xDF) {
            follow = 1;
        } else if (lead >= 0xE0 && lead <= 0xEF) {
            follow = 2;
            if (lead == 0xE0)
                low = 0xA0; /* else overlong */
            if (lead == 0xED)
                high = 0x9F; /* else a surrogate */
        } else if (lead >= 0xF0 && lead <= 0xF4) {
            follow = 3;
            if (lead == 0xF0)
                low = 0x90; /* else overlong */
            if (lead == 0xF4)
                high = 0x8F; /* else above U+10FFFF */
        } else {
            return false;
        }
        if ((size_t)(end - text) < follow)
            return false;
        for (; follow > 0; follow--) {
            if (*text < low || *text > high)
                return false;
            text++;
            low = 0x80;
            high = 0xBF;
        }
    }
    return true;
}
