#include "rc_mask.h"

#if defined(__x86_64__) || defined(__i386__)

#include <emmintrin.h>

__attribute__((target("sse2"))) void rc_mask_sse2(uint8_t *target, const uint8_t *source, size_t length, uint32_t key) {
    __m128i wide = _mm_set1_epi32((int)key);

    while (length >= 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)source);
        __m128i b = _mm_loadu_si128((const __m128i *)(source + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(source + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(source + 48));
        _mm_storeu_si128((__m128i *)target, _mm_xor_si128(a, wide));
        _mm_storeu_si128((__m128i *)(target + 16), _mm_xor_si128(b, wide));
        _mm_storeu_si128((__m128i *)(target + 32), _mm_xor_si128(c, wide));
        _mm_storeu_si128((__m128i *)(target + 48), _mm_xor_si128(d, wide));
        source += 64;
        target += 64;
        length -= 64;
    }
    while (length >= 16) {
        __m128i a = _mm_loadu_si128((const __m128i *)source);
        _mm_storeu_si128((__m128i *)target, _mm_xor_si128(a, wide));
        source += 16;
        target += 16;
        length -= 16;
    }
    rc_mask_portable(target, source, length, key);
}

#else
typedef int rc_mask_sse2_is_empty; /* ISO C wants something in every file */
#endif
