// The codec in AVX-512 with VBMI (Ice Lake, Zen 4 and newer): four groups per vector.
#include "codec_decode.h"
#include "codec_encode_avx2.h"

namespace ecgfast {
namespace {

// Running sum over 32 words; `carry` holds the sum of everything before, in every word.
__m512i scan(__m512i x, __m512i& carry) {
  const __m512i zero = _mm512_setzero_si512();
  x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 2));
  x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 4));
  x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 8));
  __m512i total = _mm512_shuffle_epi8(x, _mm512_set1_epi16(0x0f0e));  // of each lane
  total = _mm512_add_epi16(total, _mm512_alignr_epi64(total, zero, 6));
  total = _mm512_add_epi16(total, _mm512_alignr_epi64(total, zero, 4));
  const __m512i before = _mm512_alignr_epi64(total, zero, 6);
  x = _mm512_add_epi16(x, _mm512_add_epi16(before, carry));
  carry = _mm512_add_epi16(carry, _mm512_shuffle_i64x2(total, total, 0xff));
  return x;
}

struct Avx512 : EncodeAvx2 {
  // Byte widths of the 32 groups and, per block of four groups, what finds its residuals.
  struct Blocks {
    alignas(32) uint32_t width[8];   // four bytes: w of each group
    alignas(64) uint64_t start[8];   // byte offset of residuals 0 (bytes 0-3) and 4 (bytes 4-7)
    alignas(32) uint32_t bytes[8];

    explicit Blocks(const Lead& lead) {
      __m256i w = _mm256_set1_epi8(int8_t(lead.base_width));
      w = _mm256_mask_add_epi8(w, lead.plane[0], w, _mm256_set1_epi8(1));
      w = _mm256_mask_add_epi8(w, lead.plane[1], w, _mm256_set1_epi8(2));
      w = _mm256_mask_add_epi8(w, lead.plane[2], w, _mm256_set1_epi8(4));
      // A product with ones is a running sum of bytes: sums stay below 65.
      const __m256i before = _mm256_mullo_epi32(w, _mm256_set1_epi32(0x01010100));
      const __m256i total = _mm256_srli_epi32(
          _mm256_mullo_epi32(w, _mm256_set1_epi32(0x01010101)), 24);
      const __m256i half =
          _mm256_and_si256(_mm256_srli_epi16(w, 1), _mm256_set1_epi8(0x7f));
      const __m256i middle = _mm256_add_epi8(before, half);
      const __m256i low = _mm256_unpacklo_epi32(before, middle);
      const __m256i high = _mm256_unpackhi_epi32(before, middle);
      __m256i* out = reinterpret_cast<__m256i*>(start);
      _mm256_store_si256(out, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_store_si256(out + 1, _mm256_permute2x128_si256(low, high, 0x31));
      _mm256_store_si256(reinterpret_cast<__m256i*>(width), w);
      _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), total);
    }
  };

  // The 32 residuals of block b, whose at most 64 bytes start at `at`.
  static __m512i block(const uint8_t* at, const Blocks& blocks, int b) {
    const __m512i lane = _mm512_set_epi64(0x0303030303030303, 0x0303030303030303,
                                          0x0202020202020202, 0x0202020202020202,
                                          0x0101010101010101, 0x0101010101010101, 0, 0);
    const __m512i upper = _mm512_set_epi64(0x0404040404040404, 0, 0x0404040404040404, 0,
                                           0x0404040404040404, 0, 0x0404040404040404, 0);
    const __m512i w = _mm512_shuffle_epi8(_mm512_set1_epi32(int(blocks.width[b])), lane);
    const __m512i start = _mm512_shuffle_epi8(_mm512_set1_epi64(int64_t(blocks.start[b])),
                                              _mm512_add_epi8(lane, upper));
    const __m512i index = _mm512_add_epi8(start, _mm512_set1_epi64(0x0706050403020100));
    const __m512i bytes = _mm512_permutexvar_epi8(index, _mm512_loadu_si512(at));
    // Residual i of each half starts at bit i w, four further in the upper half of an odd w.
    const __m512i odd = _mm512_slli_epi16(
        _mm512_and_si512(w, _mm512_srli_epi16(upper, 2)), 2);
    __m512i bit = _mm512_mullo_epi16(w, _mm512_set1_epi64(0x0003000200010000));
    bit = _mm512_add_epi8(bit, _mm512_add_epi8(odd, _mm512_set1_epi16(0x0800)));
    const __m512i words = _mm512_multishift_epi64_epi8(bit, bytes);
    const __m512i spare = _mm512_sub_epi16(
        _mm512_set1_epi16(16), _mm512_and_si512(w, _mm512_set1_epi16(0xff)));
    return _mm512_srav_epi16(_mm512_sllv_epi16(words, spare), spare);
  }

  template <int order>
  static void unpack_order(const Lead& lead, int16_t* row) {
    const Blocks blocks(lead);
    const uint8_t* at = lead.groups;
    const __m512i base = _mm512_set1_epi16(lead.base);
    __m512i slope = _mm512_setzero_si512(), value = base;
    for (int b = 0; b < kGroups / 4; ++b) {
      __m512i x = block(at, blocks, b);
      at += blocks.bytes[b];
      if (order == 0) x = _mm512_add_epi16(x, base);
      if (order == 2) x = scan(x, slope);
      if (order >= 1) x = scan(x, value);
      _mm512_store_si512(row + 32 * b, x);
    }
  }

  static void unpack(const Lead& lead, int16_t* row) {
    switch (lead.order) {
      case 0: return unpack_order<0>(lead, row);
      case 1: return unpack_order<1>(lead, row);
      default: return unpack_order<2>(lead, row);
    }
  }

  // Every CPU with VBMI has a fast pext.
  static void pack(const int16_t* r, int w, uint8_t* out) {
    const uint64_t mask = ((uint64_t(1) << w) - 1) * 0x0001000100010001;
    uint64_t half[2];
    std::memcpy(half, r, sizeof half);
    store_halves(_pext_u64(half[0], mask), _pext_u64(half[1], mask), w, out);
  }

  static void half(const int16_t* row, float mean, float rstd, uint16_t* out) {
    const __m512 m = _mm512_set1_ps(mean), s = _mm512_set1_ps(rstd);
    for (int t = 0; t < kRow; t += 16) {
      const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(row + t));
      const __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(v));
      const __m512 z = _mm512_mul_ps(_mm512_sub_ps(x, m), s);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t),
                          _mm512_cvtps_ph(z, _MM_FROUND_TO_NEAREST_INT));
    }
    std::memset(out + kColumn, 0, (kRow - kColumn) * sizeof *out);
  }
};

}  // namespace

const Backend kAvx512 = {"avx512vbmi", decode<Avx512>, decode_patches<Avx512>, patches<Avx512>,
                         encode<Avx512>};

}  // namespace ecgfast
