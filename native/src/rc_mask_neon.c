#include "rc_mask.h"

#if defined(__aarch64__)

#include <arm_neon.h>

void rc_mask_neon(uint8_t *target, const uint8_t *source, size_t length, uint32_t key) {
    uint8x16_t wide = vreinterpretq_u8_u32(vdupq_n_u32(key));

    while (length >= 64) {
        uint8x16_t a = vld1q_u8(source);
        uint8x16_t b = vld1q_u8(source + 16);
        uint8x16_t c = vld1q_u8(source + 32);
        uint8x16_t d = vld1q_u8(source + 48);
        vst1q_u8(target, veorq_u8(a, wide));
        vst1q_u8(target + 16, veorq_u8(b, wide));
        vst1q_u8(target + 32, veorq_u8(c, wide));
        vst1q_u8(target + 48, veorq_u8(d, wide));
        source += 64;
        target += 64;
        length -= 64;
    }
    while (length >= 16) {
        vst1q_u8(target, veorq_u8(vld1q_u8(source), wide));
        source += 16;
        target += 16;
        length -= 16;
    }
    rc_mask_portable(target, source, length, key);
}

#else
typedef int rc_mask_neon_is_empty; /* ISO C wants something in every file */
#endif
