// What stays the same of an ECG under another gain, rate, or cut: how its leads correlate, and when
// its beats come. The same in NumPy: signals.py, where the constants are explained.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "clones.h"
#include "codec.h"

namespace {

constexpr int kLeads = 8;                                   // the four others follow from I and II
constexpr int kLead[kLeads] = {0, 1, 6, 7, 8, 9, 10, 11};   // I, II, V1 to V6
constexpr int kAllLeads = 12;
constexpr int kBox = 5;                                     // timesteps in a bin: 100 Hz of 500 Hz
constexpr int kStep = 2;                                    // bins from which a slope is taken
constexpr int kSmooth = 4;                                  // bins to each side in the mean power
constexpr int kRefractory = 25;                             // bins to each side without another beat
constexpr float kLeastPower = 0.3f;                         // of the median beat's
constexpr int kBeats = 32;
constexpr uint16_t kNoBeat = 0xffff;
constexpr double kMsPerTimestep = 2.0;
constexpr int kLanes = 16;                                  // sums that vectorise in a fixed order

bool changes(const int16_t* signal, int64_t num_timesteps, int64_t t) {
  for (int lead = 0; lead < kAllLeads; ++lead) {
    const int16_t* row = signal + lead * num_timesteps;
    if (row[t] != row[t + 1]) return true;
  }
  return false;
}

// Sum of products in the order of 16 lanes.
ECGFAST_INLINE float dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += a[k + j] * b[k + j];
  for (; k < n; ++k) lanes[0] += a[k] * b[k];
  double sum = 0;
  for (float lane : lanes) sum += lane;
  return float(sum);
}

// Memory of one record's fingerprint, used again for the next.
struct Scratch {
  std::vector<int32_t> bins;
  std::vector<float> slopes, power, mean, heights;
  std::vector<int64_t> peaks;
};

void find_beats(Scratch& scratch, int64_t n, int64_t first, uint16_t* beats) {
  scratch.mean.assign(n, 0.0f);
  scratch.peaks.clear();
  scratch.heights.clear();
  double sum = 0;
  for (int64_t k = 0; k < std::min<int64_t>(kSmooth, n); ++k) sum += scratch.power[k];
  for (int64_t k = 0; k < n; ++k) {
    if (k + kSmooth < n) sum += scratch.power[k + kSmooth];
    if (k > kSmooth) sum -= scratch.power[k - kSmooth - 1];
    scratch.mean[k] = float(sum);
  }
  const float* e = scratch.mean.data();
  for (int64_t k = 1; k + 1 < n; ++k) {
    if (!(e[k] > e[k - 1] && e[k] >= e[k + 1])) continue;
    bool highest = true;
    for (int64_t near = 1; near <= kRefractory && highest; ++near)
      highest = e[std::max<int64_t>(0, k - near)] <= e[k] &&
                e[std::min(n - 1, k + near)] <= e[k];
    if (!highest) continue;
    scratch.peaks.push_back(k);
    scratch.heights.push_back(e[k]);
  }
  if (scratch.peaks.empty()) return;
  std::vector<float>& sorted = scratch.heights;
  const size_t middle = sorted.size() / 2;
  std::nth_element(sorted.begin(), sorted.begin() + middle, sorted.end());
  const float least = kLeastPower * sorted[middle];
  int found = 0;
  for (int64_t k : scratch.peaks) {
    if (e[k] <= least || found == kBeats) continue;
    const double left = e[k - 1], top = e[k], right = e[k + 1];
    const double bend = left - 2 * top + right;  // below 0 at a peak
    const double at = double(k) + 0.5 * (left - right) / bend;
    beats[found++] = uint16_t(std::lrint((double(first) + kBox * at) * kMsPerTimestep));
  }
}

ECGFAST_INLINE void one(const int16_t* signal, int64_t num_timesteps, int64_t least_timesteps,
                        Scratch& scratch, float* correlation, uint16_t* beats) {
  std::memset(correlation, 0, sizeof(float) * kLeads * (kLeads - 1) / 2);
  std::fill(beats, beats + kBeats, kNoBeat);
  // A constant beginning or end is no signal: padding, or a device that was not yet recording.
  int64_t first = 0, end = num_timesteps - 1;
  while (first < end && !changes(signal, num_timesteps, first)) ++first;
  while (end > first && !changes(signal, num_timesteps, end - 1)) --end;
  ++first;
  if (end - first < least_timesteps) return;
  const int64_t num_bins = (end - first) / kBox, n = num_bins - kStep;
  if (n < 1) return;
  scratch.bins.resize(num_bins);
  scratch.slopes.resize(kLeads * n);
  scratch.power.assign(n, 0.0f);
  for (int c = 0; c < kLeads; ++c) {
    const int16_t* row = signal + kLead[c] * num_timesteps + first;
    for (int64_t k = 0; k < num_bins; ++k) {
      const int16_t* x = row + kBox * k;
      scratch.bins[k] = int32_t(x[0]) + x[1] + x[2] + x[3] + x[4];
    }
    float* slope = scratch.slopes.data() + c * n;
    for (int64_t k = 0; k < n; ++k) slope[k] = float(scratch.bins[k + kStep] - scratch.bins[k]);
    const float square = dot(slope, slope, n);
    const float factor = square > 0 ? float(std::sqrt(double(n) / double(square))) : 0.0f;
    for (int64_t k = 0; k < n; ++k) {
      slope[k] *= factor;
      scratch.power[k] += slope[k] * slope[k];
    }
  }
  for (int a = 0; a < kLeads; ++a)
    for (int b = a + 1; b < kLeads; ++b)
      *correlation++ = dot(scratch.slopes.data() + a * n, scratch.slopes.data() + b * n, n) / float(n);
  find_beats(scratch, n, first, beats);
}

}  // namespace

extern "C" ECGFAST_CLONES void ecgfast_fingerprints(const int16_t* signal, int64_t num_records,
                                                    int64_t num_timesteps, int64_t least_timesteps,
                                                    float* correlation, uint16_t* beats) {
  Scratch scratch;
  for (int64_t i = 0; i < num_records; ++i)
    one(signal + i * kAllLeads * num_timesteps, num_timesteps, least_timesteps, scratch,
        correlation + i * kLeads * (kLeads - 1) / 2, beats + i * kBeats);
}
