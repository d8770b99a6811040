#include "rc_mask.h"

#if defined(__x86_64__) || defined(__i386__)

#include <immintrin.h>

__attribute__((target("avx2"))) void rc_mask_avx2(uint8_t *target, const uint8_t *source, size_t length, uint32_t key) {
    __m256i wide = _mm256_set1_epi32((int)key);

    while (length >= 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)source);
        __m256i b = _mm256_loadu_si256((const __m256i *)(source + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(source + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(source + 96));
        _mm256_storeu_si256((__m256i *)target, _mm256_xor_si256(a, wide));
        _mm256_storeu_si256((__m256i *)(target + 32), _mm256_xor_si256(b, wide));
        _mm256_storeu_si256((__m256i *)(target + 64), _mm256_xor_si256(c, wide));
        _mm256_storeu_si256((__m256i *)(target + 96), _mm256_xor_si256(d, wide));
        source += 128;
        target += 128;
        length -= 128;
    }
    while (length >= 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)source);
        _mm256_storeu_si256((__m256i *)target, _mm256_xor_si256(a, wide));
        source += 32;
        target += 32;
        length -= 32;
    }
    rc_mask_portable(target, source, length, key);
}

#else
typedef int rc_mask_avx2_is_empty; /* ISO C wants something in every file */
#endif
