#include "load.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

uint8_t mask_key[4];
uint8_t pattern[MAX_MESSAGE_BYTES];

void frames_init(void)
{
    if (getrandom(mask_key, sizeof mask_key, 0) != sizeof mask_key)
        fatal("no random bytes");
    for (int i = 0; i < 4; i++)
        mask_key[i] |= 1; /* a zero byte in the key would leave that byte of every frame as it is */
    uint64_t x = 0x9e3779b97f4a7c15; /* the same in every process: both ends know what a message holds */
    for (size_t i = 0; i < sizeof pattern; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        pattern[i] = (uint8_t)x;
    }
}

void xor_key(uint8_t *dst, const uint8_t *src, size_t len, const uint8_t key[4])
{
    uint64_t wide;
    uint8_t twice[8];
    memcpy(twice, key, 4);
    memcpy(twice + 4, key, 4);
    memcpy(&wide, twice, 8);
    size_t i = 0;
    for (; len - i >= 8; i += 8) {
        uint64_t word;
        memcpy(&word, src + i, 8);
        word ^= wide;
        memcpy(dst + i, &word, 8);
    }
    for (; i < len; i++)
        dst[i] = src[i] ^ key[i & 3];
}

size_t frame_header(uint8_t *out, uint8_t opcode, bool fin, uint64_t length, const uint8_t *key)
{
    size_t at = 2;
    out[0] = (uint8_t)((fin ? 0x80 : 0) | opcode);
    if (length < 126) {
        out[1] = (uint8_t)length;
    } else if (length < 65536) {
        out[1] = 126;
        out[at++] = (uint8_t)(length >> 8);
        out[at++] = (uint8_t)length;
    } else {
        out[1] = 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            out[at++] = (uint8_t)(length >> shift);
    }
    if (key != NULL) {
        out[1] |= 0x80;
        memcpy(out + at, key, 4);
        at += 4;
    }
    return at;
}

/* Reads the header from *at on. Returns 1 when it is complete, 0 when more is needed, -1 on broken framing. */
static int read_header(struct frame_reader *r, uint8_t **at, uint8_t *end)
{
    unsigned need = 2;
    for (;;) {
        if (r->have >= 2) {
            unsigned code = r->head[1] & 0x7f;
            need = 2 + (code == 126 ? 2 : code == 127 ? 8 : 0) + (r->head[1] & 0x80 ? 4 : 0);
        }
        if (r->have == need && need >= 2)
            break;
        size_t take = need - r->have;
        if (take > (size_t)(end - *at))
            take = (size_t)(end - *at);
        if (take == 0)
            return 0;
        memcpy(r->head + r->have, *at, take);
        r->have += (unsigned)take;
        *at += take;
    }
    unsigned code = r->head[1] & 0x7f, key_at = 2;
    r->length = code;
    if (code == 126) {
        r->length = (uint64_t)r->head[2] << 8 | r->head[3];
        key_at = 4;
    } else if (code == 127) {
        r->length = 0;
        for (int i = 0; i < 8; i++)
            r->length = r->length << 8 | r->head[2 + i];
        key_at = 10;
    }
    r->fin = (r->head[0] & 0x80) != 0;
    r->masked = (r->head[1] & 0x80) != 0;
    if (r->masked)
        memcpy(r->key, r->head + key_at, 4);
    r->opcode = r->head[0] & 0x0f;
    if (r->head[0] & 0x70)
        return -1;
    if (r->opcode == OP_CONTINUATION) {
        if (r->message_opcode == 0)
            return -1;
        r->opcode = r->message_opcode;
    } else if (r->opcode < 3) {
        if (r->message_opcode != 0)
            return -1;
        r->message_opcode = r->opcode;
    } else if (r->opcode < OP_CLOSE || r->opcode > OP_PONG || !r->fin || r->length > 125) {
        return -1;
    }
    r->have = 0;
    r->done = 0;
    r->in_payload = true;
    return 1;
}

int frame_next(struct frame_reader *r, uint8_t **at, uint8_t *end, struct piece *piece)
{
    if (!r->in_payload) {
        int result = read_header(r, at, end);
        if (result <= 0)
            return result;
    }
    uint64_t left = r->length - r->done;
    size_t len = left < (uint64_t)(end - *at) ? (size_t)left : (size_t)(end - *at);
    if (len == 0 && left != 0)
        return 0;
    piece->opcode = r->opcode;
    piece->fin = r->fin;
    piece->masked = r->masked;
    piece->frame_length = r->length;
    piece->starts_frame = r->done == 0;
    piece->ends_frame = len == left;
    piece->data = *at;
    piece->len = len;
    for (unsigned i = 0; i < 4; i++)
        piece->key[i] = r->masked ? r->key[(r->done + i) & 3] : 0;
    *at += len;
    r->done += len;
    if (piece->ends_frame) {
        r->in_payload = false;
        if (r->fin && r->opcode < OP_CLOSE)
            r->message_opcode = 0;
    }
    return 1;
}

const struct block *block_of(size_t message, bool masked)
{
    static struct block *blocks;
    for (struct block *b = blocks; b != NULL; b = b->next)
        if (b->message == message && b->masked == masked)
            return b;
    uint8_t head[14], outer[14];
    size_t head_len = frame_header(head, OP_BINARY, true, message, masked ? mask_key : NULL);
    size_t outer_len = masked && wraps_streams ? frame_header(outer, OP_BINARY, true, head_len + message, mask_key) : 0;
    size_t frame = outer_len + head_len + message, count = 65536 / frame > 1 ? 65536 / frame : 1;
    struct block *b = malloc(sizeof *b);
    uint8_t *data = malloc(frame * count);
    if (b == NULL || data == NULL)
        fatal("out of memory");
    for (size_t i = 0; i < count; i++) {
        uint8_t *out = data + i * frame;
        memcpy(out, outer, outer_len);
        out += outer_len;
        memcpy(out, head, head_len);
        if (masked)
            xor_key(out + head_len, pattern, message, mask_key);
        else
            memcpy(out + head_len, pattern, message);
        if (outer_len > 0)
            xor_key(out, out, head_len + message, mask_key);
    }
    *b = (struct block){.message = message, .frame = frame, .len = frame * count, .masked = masked, .data = data, .next = blocks};
    blocks = b;
    return b;
}

const struct block *masked_message_of(size_t message)
{
    static struct block *blocks;
    for (struct block *b = blocks; b != NULL; b = b->next)
        if (b->message == message)
            return b;
    struct block *b = malloc(sizeof *b);
    uint8_t *data = malloc(message + 14 * (message / FRAME_BYTES + 1)), *out = data;
    if (b == NULL || data == NULL)
        fatal("out of memory");
    size_t done = 0;
    do {
        size_t len = message - done < FRAME_BYTES ? message - done : FRAME_BYTES;
        out += frame_header(out, done == 0 ? OP_BINARY : OP_CONTINUATION, done + len == message, len, mask_key);
        xor_key(out, pattern + done, len, mask_key);
        out += len;
        done += len;
    } while (done < message);
    size_t len = (size_t)(out - data);
    *b = (struct block){.message = message, .frame = len, .len = len, .masked = true, .data = data, .next = blocks};
    blocks = b;
    return b;
}
