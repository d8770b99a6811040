#include "rc_decode.h"

#include "rc_mask.h"

#include <string.h>

void rc_reader_init(struct rc_reader *reader, bool masked) {
    memset(reader, 0, sizeof *reader);
    reader->masked = masked;
}

/* RFC 6455 5.4: a continuation needs an open message, a new message must not find one. Control frames go anywhere. */
static int follow(struct rc_reader *reader, const struct rc_frame *frame) {
    if (rc_opcode_is_control(frame->opcode))
        return RC_OK;
    if (frame->opcode == RC_OP_CONTINUATION && !reader->in_message)
        return RC_EPROTO_CONTINUATION;
    if (frame->opcode != RC_OP_CONTINUATION && reader->in_message)
        return RC_EPROTO_INTERLEAVED;
    reader->in_message = !frame->fin;
    return RC_OK;
}

int rc_reader_next(struct rc_reader *reader, const uint8_t **at, const uint8_t *end, struct rc_frame *frame) {
    size_t here = (size_t)(end - *at);
    int result;

    if (here == 0)
        return RC_NEED_MORE;
    if (reader->header_bytes == 0) {
        result = rc_frame_parse(frame, *at, here, reader->masked);
        if (result > 0) {
            *at += result;
        } else if (result == RC_NEED_MORE) {
            RC_ASSERT(here < RC_HEADER_MAX);
            memcpy(reader->header, *at, here);
            reader->header_bytes = (uint8_t)here;
            *at = end;
        }
    } else {
        size_t kept = reader->header_bytes;
        size_t taken = RC_HEADER_MAX - kept < here ? RC_HEADER_MAX - kept : here;

        memcpy(reader->header + kept, *at, taken);
        result = rc_frame_parse(frame, reader->header, kept + taken, reader->masked);
        if (result > 0) {
            RC_ASSERT((size_t)result > kept);
            *at += (size_t)result - kept;
            reader->header_bytes = 0;
        } else if (result == RC_NEED_MORE) {
            RC_ASSERT(kept + taken < RC_HEADER_MAX);
            reader->header_bytes = (uint8_t)(kept + taken);
            *at = end;
        }
    }
    if (result <= 0)
        return result;
    result = follow(reader, frame);
    return result == RC_OK ? 1 : result;
}

void rc_decoder_init(struct rc_decoder *decoder, bool masked) {
    memset(decoder, 0, sizeof *decoder);
    rc_reader_init(&decoder->reader, masked);
}

int rc_decode(struct rc_decoder *decoder, const uint8_t *in, size_t length, uint8_t *out, size_t out_room,
              struct rc_piece *pieces, size_t room, size_t *consumed) {
    *consumed = 0;
    if (decoder->failure != 0) {
        *consumed = length;
        return decoder->failure;
    }
    if (length > UINT32_MAX - RC_CONTROL_MAX || out_room < length + RC_CONTROL_MAX || room == 0 || room > INT32_MAX)
        return RC_EINVAL;

    const uint8_t *at = in, *end = in + length;
    size_t used = 0; /* bytes of `out` */
    size_t count = 0;

    /* Each turn takes input, finishes an empty frame or leaves the loop: at most length + 1 turns. */
    while (count < room) {
        if (decoder->is_closed) {
            decoder->discarded_bytes += (uint64_t)(end - at);
            at = end;
            break;
        }
        if (!decoder->frame_is_open) {
            struct rc_frame frame;
            int result = rc_reader_next(&decoder->reader, &at, end, &frame);
            if (result == RC_NEED_MORE)
                break;
            if (result < 0) {
                decoder->failure = result;
                break;
            }
            decoder->frames++;
            decoder->frame_is_open = true;
            decoder->left = frame.payload_bytes;
            decoder->key = rc_mask_load(frame.key);
            decoder->opcode = frame.opcode;
            decoder->fin = frame.fin;
            decoder->control_bytes = 0;
        }

        size_t here = (size_t)(end - at);
        if (here == 0 && decoder->left > 0)
            break;
        size_t taken = decoder->left < here ? (size_t)decoder->left : here;
        bool is_last = taken == decoder->left;
        struct rc_piece piece = {.offset = (uint32_t)used, .length = (uint32_t)taken, .opcode = decoder->opcode};

        if (rc_opcode_is_control(decoder->opcode)) {
            RC_ASSERT(taken <= sizeof decoder->control - decoder->control_bytes);
            rc_mask(decoder->control + decoder->control_bytes, at, taken, decoder->key);
            decoder->control_bytes += (uint16_t)taken;
            if (is_last) {
                memcpy(out + used, decoder->control, decoder->control_bytes);
                piece.length = decoder->control_bytes;
            }
        } else {
            rc_mask(out + used, at, taken, decoder->key);
        }
        at += taken;
        decoder->left -= taken;
        decoder->key = rc_mask_rotate(decoder->key, taken);
        if (is_last) {
            decoder->frame_is_open = false;
            piece.fin = decoder->fin;
        }
        if (is_last && decoder->opcode == RC_OP_CLOSE) {
            uint16_t code;
            decoder->failure = rc_close_check(out + used, piece.length, &code);
            if (decoder->failure != RC_OK)
                break;
            decoder->is_closed = true;
        }
        if (is_last || !rc_opcode_is_control(decoder->opcode)) {
            pieces[count++] = piece;
            used += piece.length;
            if (!rc_opcode_is_control(decoder->opcode))
                decoder->opcode = RC_OP_CONTINUATION;
        }
    }
    *consumed = decoder->failure != RC_OK ? length : (size_t)(at - in);
    return count == 0 && decoder->failure != RC_OK ? decoder->failure : (int)count;
}
