/* RFC 6455 5.3: payload XOR a key of four bytes, over and over.
 *
 * A key is held as the four bytes in the order of the wire, loaded into a uint32_t as they lie in memory; bit shifts on
 * it are therefore only done by rc_mask_rotate(), which knows the byte order of the machine.
 */
#ifndef RC_MASK_H
#define RC_MASK_H

#include "rc_base.h"

#include <string.h>

/* Copies `length` bytes from `source` to `target`, XORed with `key`, whose first byte meets the first byte of `source`.
 *
 * The two may overlap when target <= source: work goes strictly forward, and no byte is read after its place was written.
 * In-place translation needs just that, because a payload moves down as headers shrink. target > source with overlap is
 * not allowed. A key of 0 is a memmove. */
void rc_mask(uint8_t *target, const uint8_t *source, size_t length, uint32_t key);

/* The key as the byte `count` places further on needs it. */
static inline uint32_t rc_mask_rotate(uint32_t key, size_t count) {
    unsigned bits = 8u * (unsigned)(count & 3);
    if (bits == 0)
        return key;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (key << bits) | (key >> (32 - bits));
#else
    return (key >> bits) | (key << (32 - bits));
#endif
}

static inline uint32_t rc_mask_load(const uint8_t key[4]) {
    uint32_t word;
    memcpy(&word, key, 4);
    return word;
}

static inline void rc_mask_store(uint8_t key[4], uint32_t word) {
    memcpy(key, &word, 4);
}

/* The twins. Each keeps the contract of rc_mask() except the special case of key 0. */
typedef void rc_mask_function(uint8_t *target, const uint8_t *source, size_t length, uint32_t key);

struct rc_mask_twin {
    const char *name; /* "portable", "sse2", "avx2", "neon" */
    rc_mask_function *function;
};

rc_mask_function rc_mask_portable;
#if defined(__x86_64__) || defined(__i386__)
rc_mask_function rc_mask_sse2;
rc_mask_function rc_mask_avx2;
#elif defined(__aarch64__)
rc_mask_function rc_mask_neon;
#endif

/* Twins that this processor can run, slowest first; the last one is what rc_mask() uses. `count` receives how many. */
const struct rc_mask_twin *rc_mask_twins(size_t *count);

/* Name of the twin in use; a constant string. */
const char *rc_mask_implementation(void);

#endif
