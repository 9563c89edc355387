// The codec in plain C++17: every machine has this path, and the others must give its bits.
#include "codec_decode.h"
#include "codec_encode.h"

namespace ecgfast {
namespace {

struct Portable {
  static void unpack(const Lead& lead, int16_t* row) {
    const uint8_t* at = lead.groups;
    for (int g = 0; g < kGroups; ++g) {
      const int w = lead.width(g);
      unpack_group(at, w, row + 8 * g);
      at += w;
    }
    uint16_t slope = 0, value = uint16_t(lead.base);
    if (lead.order == 0)
      for (int t = 0; t < kRow; ++t) row[t] = int16_t(row[t] + value);
    else if (lead.order == 1)
      for (int t = 0; t < kRow; ++t) row[t] = int16_t(value = uint16_t(value + row[t]));
    else
      for (int t = 0; t < kRow; ++t) {
        slope = uint16_t(slope + row[t]);
        row[t] = int16_t(value = uint16_t(value + slope));
      }
  }

  static void half(const int16_t* row, float mean, float rstd, uint16_t* out) {
    for (int t = 0; t < kColumn; ++t) out[t] = half_from_float((float(row[t]) - mean) * rstd);
    std::memset(out + kColumn, 0, (kRow - kColumn) * sizeof *out);
  }

  // In zigzag form (0, -1, 1, -2 ... as 0, 1, 2, 3 ...) the needed bits are the bit length.
  static void needed_bits(const int16_t* row, uint8_t* need) {
    for (int g = 0; g < kGroups; ++g) {
      uint32_t all = 0;
      for (int i = 0; i < 8; ++i) {
        const int32_t r = row[8 * g + i];
        all |= uint16_t(r * 2 ^ r >> 15);
      }
      need[g] = uint8_t(all ? 32 - __builtin_clz(all) : 0);
    }
  }

  static int largest(const uint8_t* need) {
    uint8_t most = 0;
    for (int g = 0; g < kGroups; ++g) most = need[g] > most ? need[g] : most;
    return most;
  }

  static int sum_max(const uint8_t* need, int floor) {
    int sum = 0;
    for (int g = 0; g < kGroups; ++g) sum += need[g] > floor ? need[g] : floor;
    return sum;
  }
};

}  // namespace

const Backend kPortable = {"portable", decode<Portable>, decode_patches<Portable>,
                           patches<Portable>, encode<Portable>};

}  // namespace ecgfast
