// Encoding a record, over the primitives of one instruction set:
//   Simd::needed_bits(u, middle, need)  bits that each of the 32 groups needs, for the 3 orders
//   Simd::largest(need)                 the most of them
//   Simd::sum_max(need, floor)          sum over groups of max(need, floor)
//   Simd::planes(need, floor, plane)    the planes of max(need, floor) - floor
//   Simd::pack(residual, w, out)        one group of 8 residuals; may write 16 bytes
#pragma once
#include "codec_backend.h"
#include "codec_quantum.h"

namespace ecgfast {
namespace {

// A row with two more values in front, equal to the first: differences at the start come out 0.
struct Row {
  alignas(64) int16_t before[32];
  int16_t value[kRow];

  void close() { before[30] = before[31] = value[0]; }
};

struct Choice {  // how one lead of one column is stored
  alignas(32) uint8_t need[kGroups];
  uint32_t key = UINT32_MAX;  // bytes << 6 | predicted << 4 | order << 2 | planes: the smallest is the best
  int16_t base = 0;

  int num_planes() const { return key & 3; }
  int order() const { return key >> 2 & 3; }
  bool predicted() const { return key >> 4 & 1; }
};

inline int16_t middle(const int16_t* row) {
  int16_t low = row[0], high = row[0];
  for (int t = 0; t < kColumn; ++t) {  // from 0: aligned loads
    low = row[t] < low ? row[t] : low;
    high = row[t] > high ? row[t] : high;
  }
  return int16_t((low + high + 1) >> 1);
}

inline int floor_width(int most, int num_planes) {
  const int floor = most - ((1 << num_planes) - 1);
  return floor > 0 ? floor : 0;
}

// The cheapest width code for these groups, as bytes << 6 | planes. Without branches: they could
// not be predicted, as any code may be the cheapest.
template <class Simd>
uint32_t price(const uint8_t* need) {
  const int most = Simd::largest(need), last = need[kGroups - 1];
  uint32_t best = most == 16 ? UINT32_MAX : 0;  // a base width of 16 cannot be written
  for (int planes = 0; planes < 4; ++planes) {
    const int floor = floor_width(most, planes);
    const int tail = last > floor ? last : floor;
    const int bytes = 4 * planes + Simd::sum_max(need, floor) - tail + ((tail + 3) >> 2);
    const uint32_t key = uint32_t(bytes << 6 | planes);
    best = planes == 0 ? best | key : (key < best ? key : best);
  }
  return best;
}

// Puts the best order of u into `best` if that beats what is there.
template <class Simd>
void try_orders(const Row& u, uint32_t predicted, Choice& best) {
  alignas(64) uint8_t need[3][kGroups];
  const int16_t half = middle(u.value);
  Simd::needed_bits(u.value, half, need);
  uint32_t least = UINT32_MAX;
  for (uint32_t order = 0; order < 3; ++order) {
    const uint32_t key = price<Simd>(need[order]) | predicted << 4 | order << 2;
    least = key < least ? key : least;
  }
  if (least >= best.key) return;
  best.key = least;
  best.base = best.order() == 0 ? half : u.value[0];
  std::memcpy(best.need, need[best.order()], sizeof best.need);
}

// Packs the residuals that the choice needs, group after group.
template <class Simd>
uint8_t* pack_lead(const Row& u, const Choice& choice, int floor, uint8_t* out) {
  alignas(64) int16_t residual[kRow];
  const int16_t* v = u.value;
  if (choice.order() == 0)
    for (int t = 0; t < kRow; ++t) residual[t] = int16_t(v[t] - choice.base);
  else if (choice.order() == 1)
    for (int t = 0; t < kRow; ++t) residual[t] = int16_t(v[t] - v[t - 1]);
  else
    for (int t = 0; t < kRow; ++t) residual[t] = int16_t(v[t] - 2 * v[t - 1] + v[t - 2]);
  for (int t = kColumn; t < kRow; ++t) residual[t] = 0;
  int w = 0;
  for (int g = 0; g < kGroups; ++g, out += w) {
    w = choice.need[g] > floor ? choice.need[g] : floor;
    Simd::pack(residual + 8 * g, w, out);
  }
  return out - w + ((w + 3) >> 2);  // of the last group only two residuals are kept
}

// What is left of lead c after its prediction.
inline void predicted_row(const Row* plain, int c, Row& u) {
  predict(plain[0].value, plain[1].value, plain[c - 1].value, c, u.value);
  for (int t = 0; t < kRow; ++t) u.value[t] = int16_t(plain[c].value[t] - u.value[t]);
  u.close();
}

// One column from its plain rows; writes up to 16 bytes behind its end.
template <class Simd>
uint8_t* encode_column(const Row* plain, int num_leads, uint8_t* out) {
  uint8_t packed[max_column_bytes(kMaxLeads) + 16];
  uint8_t *groups = packed, *plane_at = out + 2 + 3 * num_leads;
  uint32_t predicted = 0;
  // All of them first: a row that is read at once, shifted, waits for its own stores.
  Row difference[kMaxLeads];
  for (int c = 0; c < num_leads; ++c)
    if (kPredictedLeads >> c & 1) predicted_row(plain, c, difference[c]);
  for (int c = 0; c < num_leads; ++c) {
    Choice best;
    try_orders<Simd>(plain[c], 0, best);
    if (kPredictedLeads >> c & 1) try_orders<Simd>(difference[c], 1, best);
    const int floor = floor_width(Simd::largest(best.need), best.num_planes());
    groups = pack_lead<Simd>(best.predicted() ? difference[c] : plain[c], best, floor, groups);
    uint32_t plane[3];
    Simd::planes(best.need, floor, plane);
    std::memcpy(plane_at, plane, 4 * best.num_planes());
    plane_at += 4 * best.num_planes();
    predicted |= uint32_t(best.predicted()) << c;
    out[2 + c] = uint8_t(best.order() | best.num_planes() << 2 | floor << 4);
    std::memcpy(out + 2 + num_leads + 2 * c, &best.base, 2);
  }
  std::memcpy(out, &predicted, 2);
  std::memcpy(plane_at, packed, groups - packed);
  uint8_t* at = plane_at + (groups - packed);
  while ((at - out) % 4) *at++ = 0;
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

// Everything but the checksum. out has space for ecgfast_encode_bound bytes.
template <class Simd>
int64_t encode(const int16_t* signal_CT, int num_leads, int num_timesteps, uint8_t* out) {
  const int num_columns = num_timesteps / kColumn;
  const Quantum quantum = find_quantum(signal_CT, int64_t(num_leads) * num_timesteps);
  Row rows[kMaxLeads];
  uint32_t ends[kMaxTimesteps / kColumn];
  // Columns are written behind a wide table and moved down if the narrow one will do.
  uint8_t* const first = out + kHeaderBytes + 4 * num_columns;
  uint8_t* at = first;
  for (int j = 0; j < num_columns; ++j) {
    for (int c = 0; c < num_leads; ++c) {
      const int64_t from = int64_t(c) * num_timesteps + j * kColumn;
      divide_row(signal_CT + from, quantum, rows[c].value);
      rows[c].close();
    }
    at = encode_column<Simd>(rows, num_leads, at);
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
