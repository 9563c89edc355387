// Mean and standard deviation of leads, exact until the last step: sums are whole numbers.
#include <cmath>

#include "codec.h"

namespace {

constexpr int16_t kInvalid = -32768;  // the marker of a missing timestep

struct Sums {
  int64_t count = 0, sum = 0, squares = 0;

  void add(const int16_t* row, const uint8_t* valid, int64_t n) {
    constexpr int64_t kBlock = 1024;  // 1024 * 2^15 fits int32, which vectorises; squares need 64
    for (int64_t from = 0; from < n; from += kBlock) {
      const int64_t to = from + kBlock < n ? from + kBlock : n;
      int32_t some = 0, part = 0;
      int64_t square = 0;
      for (int64_t t = from; t < to; ++t) {
        const int32_t use = (row[t] != kInvalid) & (valid == nullptr || valid[t] != 0);
        const int32_t value = use ? row[t] : 0;
        some += use;
        part += value;
        square += int64_t(value * value);
      }
      count += some;
      sum += part;
      squares += square;
    }
  }
};

}  // namespace

// n <= 65,500 keeps count * squares below 2^63, so the variance has one rounding.
extern "C" void ecgfast_lead_statistics(const int16_t* signal, const uint8_t* valid,
                                        int64_t num_rows, int64_t num_timesteps, float* mean,
                                        float* std) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t at = row * num_timesteps;
    Sums sums;
    sums.add(signal + at, valid == nullptr ? nullptr : valid + at, num_timesteps);
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
