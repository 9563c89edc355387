// The codec in AVX2 (and F16C): two groups per vector, widths looked up instead of branched on.
#include "codec_decode.h"
#include "codec_encode_avx2.h"

namespace ecgfast {
namespace {

constexpr int kNarrow = 9;  // up to here a residual lies in two neighbouring bytes

// For width w: which two bytes hold residual i, and the factor that moves it to the word's top.
// constexpr, because a constructor in this file would run AVX2 code on machines without it.
struct Tables {
  alignas(16) uint8_t bytes[kNarrow + 1][16] = {};
  alignas(16) uint16_t factor[kNarrow + 1][8] = {};

  constexpr Tables() {
    for (int w = 0; w <= kNarrow; ++w)
      for (int i = 0; i < 8; ++i) {
        const int bit = i * w;
        bytes[w][2 * i] = uint8_t(bit / 8);
        bytes[w][2 * i + 1] = uint8_t(bit / 8 + 1);
        factor[w][i] = uint16_t(w == 0 ? 0 : 1 << (16 - w - bit % 8));
      }
  }
};

constexpr Tables kTables;

__m256i two_halves(const void* low, const void* high) {
  return _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(low))),
      _mm_loadu_si128(static_cast<const __m128i*>(high)), 1);
}

// Running sum over 16 words; `carry` holds the sum of everything before, in every word.
__m256i scan(__m256i x, __m256i& carry) {
  x = _mm256_add_epi16(x, _mm256_slli_si256(x, 2));
  x = _mm256_add_epi16(x, _mm256_slli_si256(x, 4));
  x = _mm256_add_epi16(x, _mm256_slli_si256(x, 8));
  const __m256i total = _mm256_shuffle_epi8(x, _mm256_set1_epi16(0x0f0e));  // of each lane
  const __m256i first = _mm256_permute2x128_si256(total, total, 0x08);      // [0, lane 0]
  x = _mm256_add_epi16(x, _mm256_add_epi16(first, carry));
  const __m256i swapped = _mm256_permute2x128_si256(total, total, 0x01);
  carry = _mm256_add_epi16(carry, _mm256_add_epi16(total, swapped));
  return x;
}

struct Avx2 : EncodeAvx2 {
  static __m256i bits(uint32_t plane, int value) {
    const __m256i spread = _mm256_shuffle_epi8(
        _mm256_set1_epi32(int(plane)),
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(int8_t(value)));
  }

  static void widths(const Lead& lead, uint8_t* width) {
    __m256i w = _mm256_set1_epi8(int8_t(lead.base_width));
    for (int j = 0; j < 3; ++j) w = _mm256_add_epi8(w, bits(lead.plane[j], 1 << j));
    _mm256_store_si256(reinterpret_cast<__m256i*>(width), w);
  }

  static __m256i two_groups(const uint8_t* at, int w0, int w1) {
    if (w0 > kNarrow || w1 > kNarrow) {
      alignas(32) int16_t wide[16];
      unpack_group(at, w0, [&](int i, uint32_t r) { wide[i] = int16_t(r); });
      unpack_group(at + w0, w1, [&](int i, uint32_t r) { wide[8 + i] = int16_t(r); });
      return _mm256_load_si256(reinterpret_cast<const __m256i*>(wide));
    }
    const __m256i bytes = _mm256_shuffle_epi8(two_halves(at, at + w0),
                                              two_halves(kTables.bytes[w0], kTables.bytes[w1]));
    const __m256i top =
        _mm256_mullo_epi16(bytes, two_halves(kTables.factor[w0], kTables.factor[w1]));
    const __m256i power = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_set1_epi16(int16_t(1 << w0))), _mm_set1_epi16(int16_t(1 << w1)),
        1);
    return _mm256_mulhi_epi16(top, power);  // back down by 16 - w, with the sign
  }

  template <int order>
  static void unpack_order(const Lead& lead, int16_t* row) {
    alignas(32) uint8_t width[kGroups];
    widths(lead, width);
    const uint8_t* at = lead.groups;
    const __m256i base = _mm256_set1_epi16(lead.base);
    __m256i slope = _mm256_setzero_si256(), value = base;
    for (int g = 0; g < kGroups; g += 2) {
      __m256i x = two_groups(at, width[g], width[g + 1]);
      at += width[g] + width[g + 1];
      if (order == 0) x = _mm256_add_epi16(x, base);
      if (order == 2) x = scan(x, slope);
      if (order >= 1) x = scan(x, value);
      _mm256_store_si256(reinterpret_cast<__m256i*>(row + 8 * g), x);
    }
  }

  static void unpack(const Lead& lead, int16_t* row) {
    switch (lead.order) {
      case 0: return unpack_order<0>(lead, row);
      case 1: return unpack_order<1>(lead, row);
      default: return unpack_order<2>(lead, row);
    }
  }

  static void half(const int16_t* row, float mean, float rstd, uint16_t* out) {
    const __m256 m = _mm256_set1_ps(mean), s = _mm256_set1_ps(rstd);
    for (int t = 0; t < kRow; t += 8) {
      const __m128i v = _mm_load_si128(reinterpret_cast<const __m128i*>(row + t));
      const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(v));
      const __m256 z = _mm256_mul_ps(_mm256_sub_ps(x, m), s);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + t),
                       _mm256_cvtps_ph(z, _MM_FROUND_TO_NEAREST_INT));
    }
    std::memset(out + kColumn, 0, (kRow - kColumn) * sizeof *out);
  }
};

}  // namespace

const Backend kAvx2 = {"avx2", decode<Avx2>, decode_patches<Avx2>, patches<Avx2>, encode<Avx2>};

}  // namespace ecgfast
