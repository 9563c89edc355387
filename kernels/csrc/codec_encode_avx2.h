// The encoder's primitives in AVX2, for the AVX2 and the AVX-512 backends.
#pragma once
#include <immintrin.h>

#include "codec_encode.h"

namespace ecgfast {
namespace {

struct EncodeAvx2 {
  // In zigzag form (0, -1, 1, -2 ... as 0, 1, 2, 3 ...) the bit length is what a residual needs.
  static __m256i zigzag(__m256i r) {
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

  static __m256i fold2(__m256i a, __m256i b) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    return _mm256_or_si256(
        _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low)),
        _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)));
  }

  static __m256i words(const int16_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
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

  static void needed_bits(const int16_t* u, int16_t middle, uint8_t need[3][kGroups]) {
    const __m256i mid = _mm256_set1_epi16(middle);
    const __m256i used = _mm256_setr_epi16(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0);
    __m256i part[3][4];  // OR of pairs of words: eight groups in each vector
    for (int q = 0; q < 4; ++q) {
      __m256i z[3][4];
      for (int i = 0; i < 4; ++i) {
        const int16_t* at = u + 64 * q + 16 * i;
        const __m256i mask = q == 3 && i == 3 ? used : _mm256_set1_epi16(-1);
        const __m256i now = words(at), one = words(at - 1), two = words(at - 2);
        const __m256i first = _mm256_sub_epi16(now, one);
        const __m256i second = _mm256_sub_epi16(first, _mm256_sub_epi16(one, two));
        z[0][i] = zigzag(_mm256_and_si256(_mm256_sub_epi16(now, mid), mask));
        z[1][i] = zigzag(_mm256_and_si256(first, mask));
        z[2][i] = zigzag(_mm256_and_si256(second, mask));
      }
      for (int order = 0; order < 3; ++order)
        part[order][q] =
            fold4(fold8(z[order][0], z[order][1]), fold8(z[order][2], z[order][3]));
    }
    for (int order = 0; order < 3; ++order) {
      const __m256i* p = part[order];
      const __m256i both =
          _mm256_packus_epi16(bit_length(fold2(p[0], p[1])), bit_length(fold2(p[2], p[3])));
      // Even groups lie in lane 0, odd ones in lane 1.
      const __m128i even = _mm256_castsi256_si128(both), odd = _mm256_extracti128_si256(both, 1);
      __m128i* out = reinterpret_cast<__m128i*>(need[order]);
      _mm_store_si128(out, _mm_unpacklo_epi8(even, odd));
      _mm_store_si128(out + 1, _mm_unpackhi_epi8(even, odd));
    }
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

  static void planes(const uint8_t* need, int floor, uint32_t* plane) {
    const __m256i all = _mm256_load_si256(reinterpret_cast<const __m256i*>(need));
    const __m256i code = _mm256_subs_epu8(all, _mm256_set1_epi8(int8_t(floor)));
    plane[0] = uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(code, 7)));
    plane[1] = uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(code, 6)));
    plane[2] = uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(code, 5)));
  }

  // Pairs of residuals by multiply-add, pairs of pairs by a shift; pext is slow before Zen 3.
  static void pack(const int16_t* r, int w, uint8_t* out) {
    if (w > 14) return pack_group(r, w, out);  // 2^w has to be a positive int16
    const int power = 1 << w;
    const __m128i x = _mm_and_si128(_mm_load_si128(reinterpret_cast<const __m128i*>(r)),
                                    _mm_set1_epi16(int16_t(power - 1)));
    const __m128i pairs = _mm_madd_epi16(x, _mm_set1_epi32(1 | power << 16));
    const __m128i upper = _mm_sll_epi64(_mm_srli_epi64(pairs, 32), _mm_cvtsi32_si128(2 * w));
    const __m128i fours = _mm_or_si128(
        _mm_and_si128(pairs, _mm_set1_epi64x(0xffffffff)), upper);
    store_halves(uint64_t(_mm_cvtsi128_si64(fours)), uint64_t(_mm_extract_epi64(fours, 1)), w, out);
  }
};

}  // namespace
}  // namespace ecgfast
