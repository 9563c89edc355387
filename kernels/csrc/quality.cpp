// How good an ECG's signal is, lead by lead. The same in NumPy: quality.py, where each measure and
// constant is explained.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "clones.h"
#include "codec.h"

namespace {

constexpr int kLeads = 12;
constexpr int kEnds = 100, kSegment = 600, kBlock = 24, kHeldRun = 4;  // timesteps
constexpr int kBlocks = kSegment / kBlock;
constexpr int kMostInvalid = kSegment / 10;
constexpr int kFold = 100, kReach = 2;
constexpr double kRate = 500, kPi = 3.14159265358979323846;
constexpr double kWhite = 1.95441004761167857;  // sqrt(6) sqrt(2 / pi)
constexpr int kMeasures = 11;
constexpr int64_t kMostSegments = 109;  // of 65,500 timesteps, which the caller checks; a record has 8

using Four = double __attribute__((vector_size(32)));

// Cosines and sines over half of the fold. In its other half they are the same at even multiples of
// 5 Hz, and of the other sign at odd ones.
struct Tables {
  Four mains[kFold / 2];                    // cosines at 50 and 60 Hz, then the sines
  Four cosine[kFold / 2], sine[kFold / 2];  // at 45, 55 and 65 Hz
  Tables() {
    for (int k = 0; k < kFold / 2; ++k) {
      const auto angle = [k](double hz) { return 2 * kPi / kRate * hz * k; };
      mains[k] = Four{std::cos(angle(50)), std::cos(angle(60)), std::sin(angle(50)),
                      std::sin(angle(60))};
      cosine[k] = Four{std::cos(angle(45)), std::cos(angle(55)), std::cos(angle(65)), 0};
      sine[k] = Four{std::sin(angle(45)), std::sin(angle(55)), std::sin(angle(65)), 0};
    }
  }
};

// What one segment of one lead gives.
struct Segment {
  double level, power;
  int16_t high, low;
};

double median(double* values, int64_t n) {
  std::sort(values, values + n);
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// The value at place n / 2 of the sorted values, found by halving the range: counting vectorises,
// partitioning does not.
ECGFAST_INLINE int32_t middle(const int32_t* values, int64_t n) {
  int32_t low = values[0], high = values[0];
  for (int64_t i = 0; i < n; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  while (low < high) {
    const int32_t half = low + (high - low) / 2;
    int32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += values[i] <= half;
    if (count > n / 2)
      high = half;
    else
      low = half + 1;
  }
  return low;
}

// Square of the amplitude at 50 or 60 Hz, the larger, less what is found beside it.
ECGFAST_INLINE double mains_power(const int16_t* x, const Tables& tables) {
  int32_t folded[kFold] = {};
  for (int from = 0; from < kSegment; from += kFold)
    for (int k = 0; k < kFold; ++k) folded[k] += x[from + k];
  Four mains = {}, cosine = {}, sine = {};
  for (int k = 0; k < kFold / 2; ++k) {
    const double sum = folded[k] + folded[k + kFold / 2], rest = folded[k] - folded[k + kFold / 2];
    mains += sum * tables.mains[k];
    cosine += rest * tables.cosine[k];
    sine += rest * tables.sine[k];
  }
  const auto power = [](double a, double b) { return (a * a + b * b) * 4 / (kSegment * kSegment); };
  const double low = power(cosine[0], sine[0]), between = power(cosine[1], sine[1]),
               high = power(cosine[2], sine[2]);
  return std::max(power(mains[0], mains[2]) - (low + between) / 2,
                  power(mains[1], mains[3]) - (between + high) / 2);
}

// How far a value of a block lies on one side of both values kReach away, at most.
ECGFAST_INLINE int32_t spike_of(const int16_t* x) {
  int32_t spike = 0;
  for (int t = 0; t < kBlock; ++t) {
    const int32_t before = int32_t(x[t]) - x[t - kReach], after = int32_t(x[t]) - x[t + kReach];
    spike = std::max(spike, std::max(std::min(before, after), -std::max(before, after)));
  }
  return spike;
}

ECGFAST_INLINE bool is_constant(const int16_t* x) {
  int t = 1;
  while (t < kBlock && x[t] == x[0]) ++t;
  return t == kBlock;
}

// All of a segment; `curve`: of each of its blocks the sum of |2 a - b - c|.
ECGFAST_INLINE Segment measure(const int16_t* x, const Tables& tables, int32_t* curve) {
  int16_t high = x[0], low = x[0];
  for (int t = 0; t < kSegment; ++t) {
    high = x[t] > high ? x[t] : high;  // std::max gives a reference, which does not vectorise
    low = x[t] < low ? x[t] : low;
  }
  int32_t sums[kBlocks];
  for (int block = 0; block < kBlocks; ++block) {
    const int16_t* at = x + block * kBlock;
    int32_t sum = 0, bent = 0;
    for (int t = 0; t < kBlock; ++t) {
      const int32_t bend = 2 * int32_t(at[t]) - at[t - kReach] - at[t + kReach];
      sum += at[t];
      bent += bend < 0 ? -bend : bend;
    }
    sums[block] = sum;
    curve[block] = bent;
  }
  return {double(middle(sums, kBlocks)) / kBlock, mains_power(x, tables), high, low};
}

// Timesteps of a segment at a value, in runs of kHeldRun and more.
ECGFAST_INLINE int held(const int16_t* x, int16_t value) {
  int16_t count = 0;
  for (int t = 0; t < kSegment; ++t) count += x[t] == value;
  if (count < kHeldRun) return 0;
  int total = 0, run = 0;
  for (int t = 0; t <= kSegment; ++t) {
    if (t < kSegment && x[t] == value) {
      ++run;
      continue;
    }
    if (run >= kHeldRun) total += run;
    run = 0;
  }
  return total;
}

// One lead: its eleven measures, each num_rows behind the last; counts blocks with a spike.
ECGFAST_INLINE void lead(const int16_t* x, const uint8_t* valid, int64_t num_segments, float limit,
                         const Tables& tables, float* measures, int64_t num_rows,
                         int32_t* leads_with_spike) {
  double up[kMostSegments], down[kMostSegments], level[kMostSegments], power[kMostSegments];
  int32_t curves[kMostSegments * kBlocks];  // of the segments that count
  bool counts[kMostSegments];
  int64_t n = 0, longest = 0, run = 0;
  int16_t high = INT16_MIN, low = INT16_MAX;
  for (int64_t s = 0; s < num_segments; ++s) {
    const int16_t* at = x + s * kSegment;
    int32_t* curve = curves + n * kBlocks;
    const Segment found = measure(at, tables, curve);
    int invalid = 0;
    for (int block = 0; block < kBlocks; ++block) {
      const int16_t* first = at + block * kBlock;
      int missing = 0;
      if (valid != nullptr)
        for (int t = 0; t < kBlock; ++t) missing += valid[first - x + t] == 0;
      invalid += missing;
      // A spike bends twice its height, which rules most blocks out at once.
      if (missing == 0 && float(curve[block]) > 2 * limit && float(spike_of(first)) > limit)
        ++leads_with_spike[s * kBlocks + block];
      const bool flat = missing == 0 && is_constant(first);
      run = !flat ? 0 : run > 0 && first[0] == first[-1] ? run + 1 : 1;
      longest = std::max(longest, run);
    }
    counts[s] = invalid <= kMostInvalid;
    if (!counts[s]) continue;
    up[n] = found.high - found.level;
    down[n] = found.level - found.low;
    level[n] = found.level;
    power[n] = found.power;
    high = std::max(high, found.high);
    low = std::min(low, found.low);
    ++n;
  }
  if (n == 0) return;
  int held_high = 0, held_low = 0;
  for (int64_t s = 0; s < num_segments; ++s) {
    if (!counts[s]) continue;
    held_high += held(x + s * kSegment, high);
    held_low += held(x + s * kSegment, low);
  }
  const auto [least, most] = std::minmax_element(level, level + n);
  const double wander = *most - *least;
  const double values[kMeasures] = {
      median(up, n), median(down, n), median(level, n), wander, double(middle(curves, n * kBlocks)) / (kBlock * kWhite),
      std::sqrt(std::max(median(power, n), 0.0)), double(longest * kBlock), double(high),
      double(low), double(held_high), double(held_low)};
  for (int k = 0; k < kMeasures; ++k) measures[k * num_rows] = float(values[k]);
}

}  // namespace

extern "C" ECGFAST_CLONES void ecgfast_lead_measures(const int16_t* signal, const uint8_t* valid,
                                                     int64_t num_records, int64_t num_timesteps,
                                                     int64_t spike_leads, const float* spike_limit,
                                                     float* measures, int32_t* spikes) {
  static const Tables tables;
  const int64_t num_segments = (num_timesteps - 2 * kEnds) / kSegment;
  const int64_t num_rows = num_records * kLeads;
  std::memset(measures, 0, sizeof(float) * kMeasures * num_rows);
  std::vector<int32_t> leads_with_spike(num_segments * kBlocks);
  for (int64_t record = 0; record < num_records; ++record) {
    std::fill(leads_with_spike.begin(), leads_with_spike.end(), 0);
    for (int64_t row = record * kLeads; row < (record + 1) * kLeads; ++row) {
      const int64_t at = row * num_timesteps + kEnds;
      lead(signal + at, valid == nullptr ? nullptr : valid + at, num_segments, spike_limit[row],
           tables, measures + row, num_rows, leads_with_spike.data());
    }
    int32_t found = 0;
    bool before = false;
    for (int32_t leads : leads_with_spike) {
      const bool here = leads >= spike_leads;
      found += here && !before;
      before = here;
    }
    spikes[record] = found;
  }
}
