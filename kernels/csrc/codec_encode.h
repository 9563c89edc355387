// Encoding a record, over the primitives of one instruction set:
//   Simd::needed_bits(row, need)   bits that each of the 32 groups needs
//   Simd::largest(need)            the most of them
//   Simd::sum_max(need, floor)     sum over groups of max(need, floor)
#pragma once
#include "codec_backend.h"
#include "codec_quantum.h"

namespace ecgfast {
namespace {

struct Stored {  // how one lead of one column is stored
  int16_t residual[kRow];
  uint8_t need[kGroups];
  int32_t bytes;
  int16_t base;
  uint8_t order, num_planes, base_width;
};

inline int16_t middle(const int16_t* row) {
  int16_t low = row[0], high = row[0];
  for (int t = 1; t < kColumn; ++t) {
    low = row[t] < low ? row[t] : low;
    high = row[t] > high ? row[t] : high;
  }
  return int16_t((low + high + 1) >> 1);
}

// Residuals of u for an order; `from` holds those of the order below (u itself for order 0).
inline int16_t residuals(const int16_t* __restrict from, int order, int16_t first,
                         int16_t* __restrict out) {
  const int16_t base = order == 0 ? middle(from) : first;
  out[0] = order == 0 ? int16_t(from[0] - base) : 0;
  if (order == 0)
    for (int t = 1; t < kRow; ++t) out[t] = int16_t(from[t] - base);
  else
    for (int t = 1; t < kRow; ++t) out[t] = int16_t(from[t] - from[t - 1]);
  for (int t = kColumn; t < kRow; ++t) out[t] = 0;
  return base;
}

// The cheapest width code for these residuals; leaves `stored` alone unless it beats its bytes.
template <class Simd>
bool price(const uint8_t* need, Stored& stored) {
  const int most = Simd::largest(need), last = need[kGroups - 1];
  bool better = false;
  for (int planes = most == 16 ? 1 : 0; planes < 4; ++planes) {
    const int reach = (1 << planes) - 1;
    const int floor = most > reach ? most - reach : 0;
    const int tail = last > floor ? last : floor;
    const int bytes = 4 * planes + Simd::sum_max(need, floor) - tail + ((tail + 3) >> 2);
    if (bytes < stored.bytes) {
      stored.bytes = bytes;
      stored.num_planes = uint8_t(planes);
      stored.base_width = uint8_t(floor);
      better = true;
    }
    if (floor == 0) break;  // more planes cost more and save nothing
  }
  return better;
}

// Tries the three orders of u. True if one beats what is stored.
template <class Simd>
bool try_orders(const int16_t* u, Stored& best) {
  alignas(64) int16_t residual[3][kRow];
  alignas(64) uint8_t need[kGroups];
  bool better = false;
  for (int order = 0; order < 3; ++order) {
    const int16_t base =
        residuals(order == 2 ? residual[1] : u, order, u[0], residual[order]);
    Simd::needed_bits(residual[order], need);
    if (!price<Simd>(need, best)) continue;
    best.base = base;
    best.order = uint8_t(order);
    std::memcpy(best.residual, residual[order], sizeof best.residual);
    std::memcpy(best.need, need, sizeof need);
    better = true;
  }
  return better;
}

// Writes up to 16 bytes; only the group's own count.
inline uint8_t* pack_group(const int16_t* r, int w, bool last, uint8_t* out) {
  const uint64_t mask = (uint64_t(1) << w) - 1;
  uint64_t half[2];
  for (int h = 0; h < 2; ++h, r += 4)
    half[h] = (r[0] & mask) | (r[1] & mask) << w | (r[2] & mask) << 2 * w | (r[3] & mask) << 3 * w;
  const unsigned __int128 bits = half[0] | (unsigned __int128)half[1] << 4 * w;
  std::memcpy(out, &bits, 16);
  return out + (last ? (w + 3) >> 2 : w);
}

inline uint8_t* write_column(const Stored* stored, int num_leads, uint32_t predicted,
                             uint8_t* const start) {
  std::memcpy(start, &predicted, 2);
  uint8_t* at = start + 2;
  for (int c = 0; c < num_leads; ++c)
    *at++ = uint8_t(stored[c].order | stored[c].num_planes << 2 | stored[c].base_width << 4);
  for (int c = 0; c < num_leads; ++c, at += 2) std::memcpy(at, &stored[c].base, 2);
  for (int c = 0; c < num_leads; ++c)
    for (int j = 0; j < stored[c].num_planes; ++j, at += 4) {
      uint32_t plane = 0;
      for (int g = 0; g < kGroups; ++g) {
        const int need = stored[c].need[g], floor = stored[c].base_width;
        plane |= uint32_t((need > floor ? need - floor : 0) >> j & 1) << g;
      }
      std::memcpy(at, &plane, 4);
    }
  for (int c = 0; c < num_leads; ++c)
    for (int g = 0; g < kGroups; ++g) {
      const int need = stored[c].need[g], floor = stored[c].base_width;
      at = pack_group(stored[c].residual + 8 * g, need > floor ? need : floor, g == kGroups - 1,
                      at);
    }
  while ((at - start) % 4) *at++ = 0;
  return at;
}

inline void write_header(uint8_t* out, uint8_t flags, int num_leads, int num_timesteps,
                         uint32_t quantum) {
  const uint8_t head[8] = {0x45, 0x50, 1, flags, uint8_t(num_timesteps),
                           uint8_t(num_timesteps >> 8), uint8_t(num_leads), 8};
  std::memcpy(out, head, 8);
  std::memcpy(out + 8, &quantum, 4);
  std::memset(out + kCrcOffset, 0, 4);
}

inline int64_t write_raw(const int16_t* signal_CT, int num_leads, int num_timesteps,
                         uint8_t* out) {
  write_header(out, kRaw, num_leads, num_timesteps, kNoQuantum);
  std::memcpy(out + kHeaderBytes, signal_CT, int64_t(2) * num_leads * num_timesteps);
  return kHeaderBytes + int64_t(2) * num_leads * num_timesteps;
}

// Everything but the checksum. out has room for ecgfast_encode_bound bytes.
template <class Simd>
int64_t encode(const int16_t* signal_CT, int num_leads, int num_timesteps, uint8_t* out) {
  const int num_columns = num_timesteps / kColumn;
  const Quantum quantum = find_quantum(signal_CT, int64_t(num_leads) * num_timesteps);
  alignas(64) int16_t k[kMaxLeads][kRow];
  alignas(64) int16_t u[kRow];
  Stored stored[kMaxLeads];
  uint32_t ends[kMaxTimesteps / kColumn];
  // Columns are written behind a wide table and moved down if the narrow one will do.
  uint8_t* const first = out + kHeaderBytes + 4 * num_columns;
  uint8_t* at = first;
  for (int j = 0; j < num_columns; ++j) {
    uint32_t predicted = 0;
    for (int c = 0; c < num_leads; ++c) {
      divide_row(signal_CT + int64_t(c) * num_timesteps + j * kColumn, quantum, k[c]);
      stored[c].bytes = INT32_MAX;
      try_orders<Simd>(k[c], stored[c]);
      if (!(kPredictedLeads >> c & 1)) continue;
      predict(k, c, u);
      for (int t = 0; t < kRow; ++t) u[t] = int16_t(k[c][t] - u[t]);
      predicted |= uint32_t(try_orders<Simd>(u, stored[c])) << c;
    }
    at = write_column(stored, num_leads, predicted, at);
    ends[j] = uint32_t((at - first) / 4);
  }
  Header header{};
  header.flags = uint8_t((quantum.trunc ? kTrunc : 0) | (ends[num_columns - 1] > 65535 ? kWide : 0));
  header.num_leads = num_leads;
  header.num_timesteps = num_timesteps;
  const int64_t bytes = header.data_offset() + (at - first);
  if (bytes >= header.raw_bytes()) return write_raw(signal_CT, num_leads, num_timesteps, out);
  std::memmove(out + header.data_offset(), first, at - first);
  write_header(out, header.flags, num_leads, num_timesteps, quantum.value);
  std::memset(out + header.data_offset() - 4, 0, 4);  // the padding behind an odd narrow table
  for (int j = 0; j < num_columns; ++j)
    std::memcpy(out + kHeaderBytes + j * header.entry_bytes(), &ends[j], header.entry_bytes());
  return bytes;
}

}  // namespace
}  // namespace ecgfast
