/* SHA-1 (RFC 3174) and Base64, as far as Sec-WebSocket-Accept needs them. Not for anything secret. */
#include "load.h"

#include <string.h>
#include <sys/random.h>

static uint32_t rotate(uint32_t value, unsigned bits)
{
    return value << bits | value >> (32 - bits);
}

static void sha1_block(uint32_t state[5], const uint8_t *p)
{
    uint32_t w[80];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++)
        w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 80; i++) {
        uint32_t f, k;
        if (i < 20) {
            f = (b & c) | (~b & d);
            k = 0x5a827999;
        } else if (i < 40) {
            f = b ^ c ^ d;
            k = 0x6ed9eba1;
        } else if (i < 60) {
            f = (b & c) | (b & d) | (c & d);
            k = 0x8f1bbcdc;
        } else {
            f = b ^ c ^ d;
            k = 0xca62c1d6;
        }
        uint32_t next = rotate(a, 5) + f + e + k + w[i];
        e = d;
        d = c;
        c = rotate(b, 30);
        b = a;
        a = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
}

/* At most 119 bytes of input: two blocks with padding. */
static void sha1_short(const uint8_t *data, size_t len, uint8_t out[20])
{
    uint8_t padded[128] = {0};
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    size_t blocks = len + 9 <= 64 ? 1 : 2;
    memcpy(padded, data, len);
    padded[len] = 0x80;
    for (int i = 0; i < 8; i++)
        padded[blocks * 64 - 1 - (size_t)i] = (uint8_t)((uint64_t)len * 8 >> 8 * i);
    for (size_t i = 0; i < blocks; i++)
        sha1_block(state, padded + 64 * i);
    for (int i = 0; i < 20; i++)
        out[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *data, size_t len, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t o = 0;
    for (size_t i = 0; i < len; i += 3) {
        uint32_t group = (uint32_t)data[i] << 16;
        if (i + 1 < len)
            group |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < len)
            group |= data[i + 2];
        out[o++] = digits[group >> 18];
        out[o++] = digits[group >> 12 & 63];
        out[o++] = i + 1 < len ? digits[group >> 6 & 63] : '=';
        out[o++] = i + 2 < len ? digits[group & 63] : '=';
    }
    out[o] = '\0';
}

void accept_for_key(const char *key, size_t key_len, char out[ACCEPT_CHARS + 1])
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    uint8_t text[119], digest[20];
    if (key_len > sizeof text - (sizeof guid - 1))
        key_len = sizeof text - (sizeof guid - 1);
    memcpy(text, key, key_len);
    memcpy(text + key_len, guid, sizeof guid - 1);
    sha1_short(text, key_len + sizeof guid - 1, digest);
    base64(digest, sizeof digest, out);
}

void fresh_key(char out[25])
{
    uint8_t nonce[16];
    if (getrandom(nonce, sizeof nonce, 0) != sizeof nonce)
        fatal("no random bytes");
    base64(nonce, sizeof nonce, out);
}
