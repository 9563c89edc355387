// How good an ECG's signal is, lead by lead. The same in NumPy: quality.py, where each measure and
// constant is explained.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

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

// Cosines and sines over half of the fold. In its other half they are the same at even multiples of
// 5 Hz, and of the other sign at odd ones.
template <int kTones>
struct Waves {
  double at[kFold / 2][2 * kTones];
  explicit Waves(const double (&hz)[kTones]) {
    for (int k = 0; k < kFold / 2; ++k)
      for (int f = 0; f < kTones; ++f) {
        const double angle = 2 * kPi / kRate * hz[f] * k;
        at[k][f] = std::cos(angle);
        at[k][kTones + f] = std::sin(angle);
      }
  }
};

struct Tables {
  Waves<2> mains{{50, 60}};
  Waves<3> beside{{45, 55, 65}};
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

// The middle of an odd number of values: the largest that no more than half lie below.
int32_t middle(const int32_t* values) {
  int32_t found = INT32_MIN;
  for (int i = 0; i < kBlocks; ++i) {
    int32_t below = 0;
    for (int j = 0; j < kBlocks; ++j) below += values[j] < values[i];
    if (below <= kBlocks / 2) found = std::max(found, values[i]);
  }
  return found;
}

// Square of the amplitude at 50 or 60 Hz, the larger, less what is found beside it.
double mains_power(const int16_t* x, const Tables& tables) {
  int32_t folded[kFold] = {};
  for (int from = 0; from < kSegment; from += kFold)
    for (int k = 0; k < kFold; ++k) folded[k] += x[from + k];
  double mains[4] = {}, beside[6] = {};
  for (int k = 0; k < kFold / 2; ++k) {
    const double sum = folded[k] + folded[k + kFold / 2], rest = folded[k] - folded[k + kFold / 2];
    for (int f = 0; f < 4; ++f) mains[f] += sum * tables.mains.at[k][f];
    for (int f = 0; f < 6; ++f) beside[f] += rest * tables.beside.at[k][f];
  }
  const auto power = [](double a, double b) { return (a * a + b * b) * 4 / (kSegment * kSegment); };
  const double low = power(beside[0], beside[3]), between = power(beside[1], beside[4]),
               high = power(beside[2], beside[5]);
  return std::max(power(mains[0], mains[2]) - (low + between) / 2,
                  power(mains[1], mains[3]) - (between + high) / 2);
}

// How far a value of a block lies on one side of both values kReach away, at most.
int32_t spike_of(const int16_t* x) {
  int32_t spike = 0;
  for (int t = 0; t < kBlock; ++t) {
    const int32_t before = int32_t(x[t]) - x[t - kReach], after = int32_t(x[t]) - x[t + kReach];
    spike = std::max(spike, std::max(std::min(before, after), -std::max(before, after)));
  }
  return spike;
}

bool is_constant(const int16_t* x) {
  int t = 1;
  while (t < kBlock && x[t] == x[0]) ++t;
  return t == kBlock;
}

// All of a segment; `curve`: of each of its blocks the sum of |2 a - b - c|.
Segment measure(const int16_t* x, const Tables& tables, int32_t* curve) {
  int16_t high = x[0], low = x[0];
  for (int t = 0; t < kSegment; ++t) {
    high = std::max(high, x[t]);
    low = std::min(low, x[t]);
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
  return {double(middle(sums)) / kBlock, mains_power(x, tables), high, low};
}

// Timesteps of a segment at a value, in runs of kHeldRun and more.
int held(const int16_t* x, int16_t value) {
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
void lead(const int16_t* x, const uint8_t* valid, int64_t num_segments, float limit,
          const Tables& tables, float* measures, int64_t num_rows, int32_t* leads_with_spike) {
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
  int32_t* const half = curves + n * kBlocks / 2;
  std::nth_element(curves, half, curves + n * kBlocks);
  const auto [least, most] = std::minmax_element(level, level + n);
  const double wander = *most - *least;
  const double values[kMeasures] = {
      median(up, n), median(down, n), median(level, n), wander, double(*half) / (kBlock * kWhite),
      std::sqrt(std::max(median(power, n), 0.0)), double(longest * kBlock), double(high),
      double(low), double(held_high), double(held_low)};
  for (int k = 0; k < kMeasures; ++k) measures[k * num_rows] = float(values[k]);
}

}  // namespace

extern "C" void ecgfast_lead_measures(const int16_t* signal, const uint8_t* valid,
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
