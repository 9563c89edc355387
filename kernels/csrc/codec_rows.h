// Passes over one row (a lead's 250 timesteps of a column, padded to 256), the same source for
// every instruction set: each file that includes this is compiled with its own flags and the
// compiler vectorises these loops. Internal linkage, so that no AVX copy serves another file.
#pragma once
#include "codec_format.h"

namespace ecgfast {
namespace {

// The residuals of one group, passed to take(i, residual) in order: 0-3 lie in the 8 bytes from
// `at`, 4-7 in those from at + w / 2. Signs are undone by x ^ s - s with s the sign bit, the ^ for
// four residuals at once.
template <class Take>
inline void unpack_group(const uint8_t* at, int w, Take take) {
  const uint32_t mask = (1u << w) - 1, sign = (1u << w) >> 1;
  uint64_t signs = sign | uint64_t(sign) << w;
  signs |= signs << 2 * w;
  const uint64_t low = load<uint64_t>(at) ^ signs;
  const uint64_t high = load<uint64_t>(at + (w >> 1)) >> 4 * (w & 1) ^ signs;
  for (int i = 0; i < 4; ++i) take(i, (uint32_t(low >> i * w) & mask) - sign);
  for (int i = 0; i < 4; ++i) take(4 + i, (uint32_t(high >> i * w) & mask) - sign);
}

// The other way round: two halves of 4 w bits each, one behind the other.
inline void store_halves(uint64_t low, uint64_t high, int w, uint8_t* out) {
  const int bytes = w >> 1;  // whole bytes of the low half; an odd w leaves four bits over
  const uint64_t rest = low >> 4 * bytes >> 4 * bytes;
  high = high << 4 * (w & 1) | rest;
  std::memcpy(out, &low, sizeof low);
  std::memcpy(out + bytes, &high, sizeof high);
}

inline void pack_group(const int16_t* r, int w, uint8_t* out) {
  const uint64_t mask = (uint64_t(1) << w) - 1;
  uint64_t half[2];
  for (int h = 0; h < 2; ++h, r += 4)
    half[h] = (r[0] & mask) | (r[1] & mask) << w | (r[2] & mask) << 2 * w | (r[3] & mask) << 3 * w;
  store_halves(half[0], half[1], w, out);
}

// Prediction of lead c from leads I and II and the lead before; all rows have kRow values.
inline void predict(const int16_t* one, const int16_t* two, const int16_t* before, int c,
                    int16_t* __restrict p) {
  switch (c) {
    case 2:
      for (int t = 0; t < kRow; ++t) p[t] = int16_t(two[t] - one[t]);
      break;
    case 3:  // the exact floor of the half sum, without a 17th bit
      for (int t = 0; t < kRow; ++t)
        p[t] = int16_t(-((one[t] & two[t]) + (int16_t(one[t] ^ two[t]) >> 1)));
      break;
    case 4:
      for (int t = 0; t < kRow; ++t) p[t] = int16_t(one[t] - (two[t] >> 1));
      break;
    case 5:
      for (int t = 0; t < kRow; ++t) p[t] = int16_t(two[t] - (one[t] >> 1));
      break;
    default:
      std::memcpy(p, before, sizeof(int16_t) * kRow);
  }
}

// v = sgn(k) * ((|k| * Q + R) >> 16) modulo 2^16 in 16-bit steps: the carry of the rounding
// constant 0x8000 out of the low product is that product's top bit.
inline void undo_quantum(int16_t* row, uint32_t quantum, bool trunc) {
  const uint16_t high = uint16_t(quantum >> 16), low = uint16_t(quantum);
  const uint16_t round = trunc ? 0 : 1;
  for (int t = 0; t < kRow; ++t) {
    const uint16_t size = uint16_t(row[t] < 0 ? -row[t] : row[t]);
    const uint16_t carry = uint16_t(uint16_t(size * low) >> 15) & round;
    const uint16_t v = uint16_t(size * high + uint16_t(uint32_t(size) * low >> 16) + carry);
    row[t] = int16_t(row[t] < 0 ? -v : v);
  }
}

// Round to nearest even, as every GPU and F16C do; NaN stays NaN. Without branches, and signed
// where it can be, so that plain SSE2 vectorises it.
inline uint16_t half_from_float(float value) {
  int32_t bits, sum;
  std::memcpy(&bits, &value, sizeof bits);
  const int32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  float size;
  std::memcpy(&size, &bits, sizeof size);
  size += 0.5f;  // rounds at 2^-24, the last bit of a subnormal half
  std::memcpy(&sum, &size, sizeof sum);
  const int32_t normal = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
  const int32_t small = -int32_t(bits < 0x38800000), nan = -int32_t(bits > 0x7f800000);
  int32_t half = ((sum - 0x3f000000) & small) | (normal & ~small);
  half = half < 0x7c00 ? half : 0x7c00;  // 65520 and more round to infinity
  half |= nan & 0x200;
  return uint16_t(sign | half);
}

}  // namespace
}  // namespace ecgfast
