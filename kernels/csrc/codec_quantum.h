// Finding the grid on which a record's values lie, and dividing by it (docs/format.md, 2.5 rule 1).
#pragma once
#include "codec_rows.h"

namespace ecgfast {
namespace {

struct Quantum {
  uint32_t value;
  bool trunc;
};

constexpr uint32_t kQuanta[] = {319816, 320000, 159908, 163840};
constexpr int kBlock = 1024;  // values looked at before a candidate can be dropped

// |k| for |v|: the nearest whole multiple (of v + 1/2 where values were cut). Whether it is right
// shows when it is multiplied back; floats are exact enough, as |v| <= 2^15 and steps are >= 2.
struct Divider {
  float inverse, offset;
  explicit Divider(Quantum q)
      : inverse(65536.0f / float(q.value)), offset((q.trunc ? 0.5f : 0.0f) * inverse + 0.5f) {}
  int32_t operator()(int32_t size) const { return int32_t(float(size) * inverse + offset); }
};

inline bool reproduces(const int16_t* v, int64_t n, Quantum q) {
  const Divider divide(q);
  const uint32_t round = q.trunc ? 0 : 32768;
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t size = v[i] < 0 ? -int32_t(v[i]) : v[i];
    bad |= ((uint32_t(divide(size)) * q.value + round) >> 16) ^ uint32_t(size);
  }
  return bad == 0;
}

inline bool reproduces_all(const int16_t* v, int64_t n, Quantum q) {
  for (int64_t i = 0; i < n; i += kBlock)
    if (!reproduces(v + i, n - i < kBlock ? n - i : kBlock, q)) return false;
  return true;
}

// Not std::gcd: a template's AVX copy could serve the portable path.
inline uint32_t gcd(uint32_t a, uint32_t b) {
  while (b != 0) {
    const uint32_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Greatest common divisor of all |v|; blocks that the divisor already divides cost one vector pass.
inline uint32_t common_divisor(const int16_t* v, int64_t n) {
  uint32_t divisor = 0;
  for (int64_t i = 0; i < n && divisor != 1; i += kBlock) {
    const int64_t count = n - i < kBlock ? n - i : kBlock;
    if (divisor > 1 && reproduces(v + i, count, {divisor << 16, false})) continue;
    for (int64_t t = i; t < i + count && divisor != 1; ++t)
      divisor = gcd(divisor, uint32_t(v[t] < 0 ? -int32_t(v[t]) : v[t]));
  }
  return divisor;
}

inline Quantum find_quantum(const int16_t* v, int64_t n) {
  const uint32_t divisor = common_divisor(v, n);
  if (divisor >= 2) return {divisor << 16, false};
  if (divisor == 1)
    for (uint32_t value : kQuanta)
      for (int trunc = 0; trunc < 2; ++trunc)
        if (reproduces_all(v, n, {value, trunc != 0})) return {value, trunc != 0};
  return {kNoQuantum, false};
}

// row = k for the first kColumn values of v, zeros behind them.
inline void divide_row(const int16_t* v, Quantum q, int16_t* row) {
  std::memcpy(row, v, kColumn * sizeof *row);
  for (int t = kColumn; t < kRow; ++t) row[t] = 0;
  if (q.value == kNoQuantum) return;
  const Divider divide(q);
  for (int t = 0; t < kColumn; ++t) {
    const int32_t size = divide(row[t] < 0 ? -int32_t(row[t]) : row[t]);
    row[t] = int16_t(row[t] < 0 ? -size : size);
  }
}

}  // namespace
}  // namespace ecgfast
