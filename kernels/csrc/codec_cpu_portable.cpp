// The codec in plain C++17: every machine has this path, and the others must give its bits.
#include "codec_decode.h"
#include "codec_encode.h"

namespace ecgfast {
namespace {

struct Portable {
  // Differences are undone while the residuals are in registers.
  template <int order>
  static void unpack_order(const Lead& lead, int16_t* row) {
    const uint8_t* at = lead.groups;
    uint32_t slope = 0, value = uint16_t(lead.base);
    for (int g = 0; g < kGroups; ++g, row += 8) {
      const int w = lead.width(g);
      unpack_group(at, w, [&](int i, uint32_t r) {
        if (order == 2) r = slope += r;
        row[i] = int16_t(order == 0 ? value + r : value += r);
      });
      at += w;
    }
  }

  static void unpack(const Lead& lead, int16_t* row) {
    switch (lead.order) {
      case 0: return unpack_order<0>(lead, row);
      case 1: return unpack_order<1>(lead, row);
      default: return unpack_order<2>(lead, row);
    }
  }

  static void half(const int16_t* row, float mean, float rstd, uint16_t* out) {
    for (int t = 0; t < kColumn; ++t) out[t] = half_from_float((float(row[t]) - mean) * rstd);
    std::memset(out + kColumn, 0, (kRow - kColumn) * sizeof *out);
  }

  // In zigzag form (0, -1, 1, -2 ... as 0, 1, 2, 3 ...) the bit length is what a residual needs.
  static void needed_bits(const int16_t* u, int16_t middle, uint8_t need[3][kGroups]) {
    alignas(64) uint16_t zigzag[kRow];
    for (int order = 0; order < 3; ++order) {
      for (int t = 0; t < kRow; ++t) {
        const int32_t r0 = u[t] - middle, r1 = u[t] - u[t - 1], r2 = r1 - u[t - 1] + u[t - 2];
        const int16_t r = int16_t(order == 0 ? r0 : order == 1 ? r1 : r2);
        zigzag[t] = uint16_t(uint16_t(r) << 1 ^ r >> 15);
      }
      for (int t = kColumn; t < kRow; ++t) zigzag[t] = 0;
      for (int g = 0; g < kGroups; ++g) {
        uint64_t some[2];
        std::memcpy(some, zigzag + 8 * g, sizeof some);
        some[0] |= some[1];
        some[0] |= some[0] >> 32;
        const uint32_t all = uint32_t((some[0] | some[0] >> 16) & 0xffff);
        need[order][g] = uint8_t(all ? 32 - __builtin_clz(all) : 0);
      }
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

  static void planes(const uint8_t* need, int floor, uint32_t* plane) {
    plane[0] = plane[1] = plane[2] = 0;
    for (int g = 0; g < kGroups; ++g) {
      const uint32_t code = need[g] > floor ? need[g] - floor : 0;
      for (int j = 0; j < 3; ++j) plane[j] |= (code >> j & 1) << g;
    }
  }

  static void pack(const int16_t* r, int w, uint8_t* out) { pack_group(r, w, out); }
};

}  // namespace

const Backend kPortable = {"portable", decode<Portable>, decode_patches<Portable>,
                           patches<Portable>, encode<Portable>};

}  // namespace ecgfast
