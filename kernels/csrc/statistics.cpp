// Mean and standard deviation of leads, exact until the last step: sums are whole numbers.
#include <cmath>

#include "clones.h"
#include "codec.h"

namespace {

constexpr int16_t kInvalid = -32768;  // the marker of a missing timestep

struct Sums {
  int64_t count = 0, sum = 0, squares = 0;

  template <bool kMasked>
  ECGFAST_INLINE void add(const int16_t* row, const uint8_t* valid, int64_t n) {
    constexpr int64_t kBlock = 1024;  // 1024 * 2^16 fits 32 bits, so all of a block vectorises
    for (int64_t from = 0; from < n; from += kBlock) {
      const int64_t to = from + kBlock < n ? from + kBlock : n;
      int32_t some = 0, part = 0;
      uint32_t low = 0, high = 0;  // halves of the squares
      for (int64_t t = from; t < to; ++t) {
        bool use = row[t] != kInvalid;
        if constexpr (kMasked) use = use & (valid[t] != 0);
        const int16_t value = use ? row[t] : int16_t(0);
        const uint32_t square = uint32_t(int32_t(value) * int32_t(value));
        some += use;
        part += value;
        low += square & 0xffff;
        high += square >> 16;
      }
      count += some;
      sum += part;
      squares += (int64_t(high) << 16) + low;
    }
  }
};

}  // namespace

// n <= 65,500 keeps count * squares below 2^63, so the variance has one rounding.
extern "C" ECGFAST_CLONES void ecgfast_lead_statistics(const int16_t* signal,
                                                       const uint8_t* valid, int64_t num_rows,
                                                       int64_t num_timesteps, float* mean,
                                                       float* std) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t at = row * num_timesteps;
    Sums sums;
    if (valid == nullptr)
      sums.add<false>(signal + at, nullptr, num_timesteps);
    else
      sums.add<true>(signal + at, valid + at, num_timesteps);
    if (sums.count == 0) {
      mean[row] = std[row] = 0;
      continue;
    }
    const double n = double(sums.count);
    const double spread = double(sums.count * sums.squares - sums.sum * sums.sum);
    mean[row] = float(double(sums.sum) / n);
    std[row] = float(std::sqrt(spread / (n * n)));
  }
}
