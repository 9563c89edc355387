// The encoder's primitives in AVX2, for the AVX2 and the AVX-512 backends.
#pragma once
#include <immintrin.h>

#include "codec_encode.h"

namespace ecgfast {
namespace {

struct EncodeAvx2 {
  // Zigzag form of groups 2 i and 2 i + 1: its bit length is what a residual needs.
  static __m256i zigzag(const int16_t* row, int i) {
    const __m256i r = _mm256_load_si256(reinterpret_cast<const __m256i*>(row) + i);
    return _mm256_xor_si256(_mm256_slli_epi16(r, 1), _mm256_srai_epi16(r, 15));
  }

  // OR over each half of a 128-bit lane: a's lanes become the low half, b's the high one.
  static __m256i fold8(__m256i a, __m256i b) {
    return _mm256_or_si256(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  }

  static __m256i fold4(__m256i a, __m256i b) {
    const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_or_si256(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)),
                           _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
  }

  // 16 groups from `first` on: one 16-bit OR each; even groups in lane 0, odd ones in lane 1.
  static __m256i fold16(const int16_t* row, int first) {
    __m256i four[2];
    for (int h = 0; h < 2; ++h) {
      const int i = first / 2 + 4 * h;
      four[h] = fold4(fold8(zigzag(row, i), zigzag(row, i + 1)),
                      fold8(zigzag(row, i + 2), zigzag(row, i + 3)));
    }
    const __m256i low = _mm256_set1_epi32(0xffff);
    return _mm256_or_si256(
        _mm256_packus_epi32(_mm256_and_si256(four[0], low), _mm256_and_si256(four[1], low)),
        _mm256_packus_epi32(_mm256_srli_epi32(four[0], 16), _mm256_srli_epi32(four[1], 16)));
  }

  // Bit length of 16-bit numbers, by nibbles.
  static __m256i bit_length(__m256i x) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4));
    const __m256i upper_table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 5, 6, 6, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i lower = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
    const __m256i upper = _mm256_shuffle_epi8(
        upper_table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
    const __m256i bytes = _mm256_max_epu8(lower, upper);
    const __m256i some = _mm256_cmpgt_epi8(bytes, _mm256_setzero_si256());
    const __m256i high = _mm256_add_epi8(bytes, _mm256_and_si256(some, _mm256_set1_epi16(0x0800)));
    return _mm256_and_si256(_mm256_max_epu8(high, _mm256_srli_epi16(high, 8)),
                            _mm256_set1_epi16(0xff));
  }

  static void needed_bits(const int16_t* row, uint8_t* need) {
    const __m256i both =
        _mm256_packus_epi16(bit_length(fold16(row, 0)), bit_length(fold16(row, 16)));
    const __m128i even = _mm256_castsi256_si128(both), odd = _mm256_extracti128_si256(both, 1);
    __m128i* out = reinterpret_cast<__m128i*>(need);
    _mm_store_si128(out, _mm_unpacklo_epi8(even, odd));
    _mm_store_si128(out + 1, _mm_unpackhi_epi8(even, odd));
  }

  static int largest(const uint8_t* need) {
    const __m128i* at = reinterpret_cast<const __m128i*>(need);
    __m128i most = _mm_max_epu8(_mm_load_si128(at), _mm_load_si128(at + 1));
    most = _mm_max_epu8(most, _mm_srli_epi16(most, 8));
    // The smallest of the complements, as 16-bit words whose upper halves are equal.
    const __m128i rest = _mm_sub_epi16(_mm_set1_epi16(255), _mm_and_si128(most, _mm_set1_epi16(255)));
    return 255 - (_mm_cvtsi128_si32(_mm_minpos_epu16(rest)) & 0xffff);
  }

  static int sum_max(const uint8_t* need, int floor) {
    const __m256i all = _mm256_load_si256(reinterpret_cast<const __m256i*>(need));
    const __m256i width = _mm256_max_epu8(all, _mm256_set1_epi8(int8_t(floor)));
    const __m256i sums = _mm256_sad_epu8(width, _mm256_setzero_si256());
    const __m128i half =
        _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return int(_mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1));
  }
};

}  // namespace
}  // namespace ecgfast
