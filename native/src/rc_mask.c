/* The portable loop, which is the reference for the twins, and the choice among them.
 *
 * Why each twin is forward-only and has no overlapping tail: in place, XORing a byte twice gives the input back, so the
 * usual trick of redoing the last full vector is not open to us. Tails go 8 bytes, then single bytes.
 */
#include "rc_mask.h"

void rc_mask_portable(uint8_t *target, const uint8_t *source, size_t length, uint32_t key) {
    uint64_t wide = ((uint64_t)key << 32) | key;

    /* All four words are loaded before the first is stored, hence 32 bytes at once are safe for any target <= source. */
    while (length >= 32) {
        uint64_t words[4];
        memcpy(words, source, 32);
        words[0] ^= wide;
        words[1] ^= wide;
        words[2] ^= wide;
        words[3] ^= wide;
        memcpy(target, words, 32);
        source += 32;
        target += 32;
        length -= 32;
    }
    while (length >= 8) {
        uint64_t word;
        memcpy(&word, source, 8);
        word ^= wide;
        memcpy(target, &word, 8);
        source += 8;
        target += 8;
        length -= 8;
    }
    for (; length > 0; length--) {
        uint8_t bytes[4];
        rc_mask_store(bytes, key);
        *target++ = (uint8_t)(*source++ ^ bytes[0]);
        key = rc_mask_rotate(key, 1);
    }
}

enum {
    TWINS_MAX = 3
};

static struct rc_mask_twin twins[TWINS_MAX] = {{"portable", rc_mask_portable}};
static size_t twin_count = 1;

/* Runs while the object is loaded, before any thread can call rc_mask(); afterwards the table is read only. */
__attribute__((constructor)) static void choose_twin(void) {
    twin_count = 1;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse2"))
        twins[twin_count++] = (struct rc_mask_twin){"sse2", rc_mask_sse2};
    if (__builtin_cpu_supports("avx2"))
        twins[twin_count++] = (struct rc_mask_twin){"avx2", rc_mask_avx2};
#elif defined(__aarch64__)
    twins[twin_count++] = (struct rc_mask_twin){"neon", rc_mask_neon}; /* part of the base architecture */
#endif
}

const struct rc_mask_twin *rc_mask_twins(size_t *count) {
    *count = twin_count;
    return twins;
}

const char *rc_mask_implementation(void) {
    return twins[twin_count - 1].name;
}

void rc_mask(uint8_t *target, const uint8_t *source, size_t length, uint32_t key) {
    if (key == 0) {
        if (target != source && length > 0)
            memmove(target, source, length);
        return;
    }
    twins[twin_count - 1].function(target, source, length, key);
}
