// Interleaved frames, as recorders write them, to one row per signal, with the rows' checksums.
#include <cstring>

#include "codec.h"

namespace {

using Words = int16_t __attribute__((vector_size(16)));  // eight timesteps, or eight signals
constexpr int64_t kLanes = 8;

#if defined(__clang__)
#define ECGFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC has the other spelling since version 12 only
#define ECGFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

inline Words load(const int16_t* at) {
  Words words;
  std::memcpy(&words, at, sizeof words);
  return words;
}

inline void store(int16_t* at, Words words) { std::memcpy(at, &words, sizeof words); }

// Three rounds of interleaving transpose an 8 x 8 block: row i meets row i + 4 in each.
inline void transpose(Words (&block)[kLanes]) {
  for (int round = 0; round < 3; ++round) {
    Words next[kLanes];
    for (int i = 0; i < 4; ++i) {
      next[2 * i] = ECGFAST_SHUFFLE(block[i], block[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = ECGFAST_SHUFFLE(block[i], block[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::memcpy(block, next, sizeof next);
  }
}

// Eight signals from column `s` on; returns the timesteps done, a multiple of eight.
int64_t eight_signals(const int16_t* frames, int64_t num_timesteps, int64_t num_signals, int64_t s,
                      int16_t* rows) {
  int64_t t = 0;
  for (; t + kLanes <= num_timesteps; t += kLanes) {
    Words block[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) block[i] = load(frames + (t + i) * num_signals + s);
    transpose(block);
    for (int64_t i = 0; i < kLanes; ++i) store(rows + (s + i) * num_timesteps + t, block[i]);
  }
  return t;
}

}  // namespace

extern "C" void ecgfast_deinterleave(const int16_t* frames, int64_t num_timesteps,
                                     int64_t num_signals, int16_t* rows, uint16_t* sums) {
  int64_t done = 0;  // timesteps of all signals
  if (num_signals >= kLanes) {
    int64_t s = 0;
    for (; s + kLanes <= num_signals; s += kLanes)
      done = eight_signals(frames, num_timesteps, num_signals, s, rows);
    // The last eight again where they overlap: cheaper than a narrower loop.
    if (s < num_signals)
      eight_signals(frames, num_timesteps, num_signals, num_signals - kLanes, rows);
  }
  for (int64_t s = 0; s < num_signals; ++s) {
    int16_t* row = rows + s * num_timesteps;
    for (int64_t t = done; t < num_timesteps; ++t) row[t] = frames[t * num_signals + s];
    uint16_t sum = 0;
    for (int64_t t = 0; t < num_timesteps; ++t) sum = uint16_t(sum + row[t]);
    sums[s] = sum;
  }
}
