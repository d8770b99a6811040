/* The decoder. First byte: bit 0 the peer is a client, the rest where the stream is cut. Oracle: cut in parts, and with room
 * for one piece at a time, the stream gives the same bytes, frames and failure as whole. */
#include "rc_decode.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Everything that was decoded, in a form that does not depend on the cuts. */
struct digest {
    uint64_t sum; /* FNV-1a over opcodes, payload bytes and ends of messages */
    uint64_t frames, discarded_bytes;
    int failure;
};

static void add(struct digest *digest, unsigned byte) {
    digest->sum = (digest->sum ^ byte) * 0x100000001B3u;
}

static struct digest digest_of(const uint8_t *data, size_t size, bool masked, size_t part, size_t room) {
    struct digest digest = {.sum = 0xCBF29CE484222325u};
    struct rc_decoder decoder;
    struct rc_piece pieces[64];
    size_t at = 0;

    RC_ASSERT(room <= sizeof pieces / sizeof *pieces);
    rc_decoder_init(&decoder, masked);
    while (at < size) {
        size_t length = size - at < part ? size - at : part, consumed;
        uint8_t *in = malloc(length),
                *out = malloc(length + RC_CONTROL_MAX); /* exact, so that ASan sees each byte too far */
        RC_ASSERT(in != NULL && out != NULL);
        memcpy(in, data + at, length);
        int count = rc_decode(&decoder, in, length, out, length + RC_CONTROL_MAX, pieces, room, &consumed);
        RC_ASSERT(count >= 0 || (count == decoder.failure && RC_IS_PROTOCOL_ERROR(count)));
        RC_ASSERT(consumed == length || count == (int)room);
        for (int i = 0; i < count; i++) {
            if (pieces[i].opcode != RC_OP_CONTINUATION)
                add(&digest, 0x100u | pieces[i].opcode);
            for (uint32_t k = 0; k < pieces[i].length; k++)
                add(&digest, out[pieces[i].offset + k]);
            if (pieces[i].fin)
                add(&digest, 0x200);
        }
        at += consumed;
        free(in);
        free(out);
    }
    digest.frames = decoder.frames;
    digest.discarded_bytes = decoder.discarded_bytes;
    digest.failure = decoder.failure;
    return digest;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    bool masked = (data[0] & 1) != 0;
    size_t part = 1 + (data[0] >> 1);
    struct digest whole = digest_of(data + 1, size - 1, masked, size, 64);
    struct digest cut = digest_of(data + 1, size - 1, masked, part, 1);

    RC_ASSERT(whole.sum == cut.sum && whole.frames == cut.frames && whole.failure == cut.failure);
    RC_ASSERT(whole.failure != 0 || whole.discarded_bytes == cut.discarded_bytes);
    return 0;
}
