// ecgpack's constants and bounds-checked parsing (docs/format.md, 2.1 to 2.4). No SIMD here.
#pragma once
#include <cstdint>
#include <cstring>

#include "codec.h"

namespace ecgfast {

constexpr int kColumn = 250;   // timesteps of a column
constexpr int kRow = 256;      // the same, padded
constexpr int kGroups = 32;    // groups of 8 timesteps in a row; the last holds two
constexpr int kMaxLeads = 16;
constexpr int kMaxTimesteps = 65500;
constexpr int kHeaderBytes = 16;
constexpr int kCrcOffset = 12;
constexpr int kOverread = 64;  // bytes that a SIMD path may load behind a group's first byte
constexpr uint8_t kRaw = 1, kTrunc = 2, kWide = 4;
constexpr uint32_t kNoQuantum = 1u << 16;
constexpr uint32_t kPredictedLeads = 0b111110111100;
// Fixed fields, three planes per lead, and 31 groups of 16 bytes and one of 4 per lead.
constexpr int max_column_bytes(int num_leads) {
  return 2 + num_leads * (3 + 12 + 31 * 16 + 4) + 3;
}

template <class T>
inline T load(const uint8_t* from) {  // the hosts that we build for are little endian
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

struct Header {
  uint8_t flags;
  int num_leads, num_timesteps;
  uint32_t quantum, crc;

  bool raw() const { return flags & kRaw; }
  bool trunc() const { return flags & kTrunc; }
  int num_columns() const { return num_timesteps / kColumn; }
  int entry_bytes() const { return flags & kWide ? 4 : 2; }
  int64_t raw_bytes() const { return kHeaderBytes + int64_t(2) * num_leads * num_timesteps; }
  int64_t data_offset() const {
    return (kHeaderBytes + entry_bytes() * num_columns() + 3) / 4 * 4;
  }
  // End of column j in bytes behind data_offset; only after check_columns.
  int64_t column_end(const uint8_t* chunk, int j) const {
    const uint8_t* entry = chunk + kHeaderBytes + j * entry_bytes();
    return int64_t(4) * (flags & kWide ? load<uint32_t>(entry) : load<uint16_t>(entry));
  }
};

inline int32_t parse_header(const uint8_t* chunk, int64_t length, Header& header) {
  if (length < kHeaderBytes) return ECGFAST_TRUNCATED;
  if (load<uint16_t>(chunk) != 0x5045 || chunk[2] != 1 || chunk[7] != 8 || chunk[3] > 7)
    return ECGFAST_MAGIC;
  header.flags = chunk[3];
  header.num_timesteps = load<uint16_t>(chunk + 4);
  header.num_leads = chunk[6];
  header.quantum = load<uint32_t>(chunk + 8);
  header.crc = load<uint32_t>(chunk + kCrcOffset);
  if (header.num_leads < 1 || header.num_leads > kMaxLeads || header.num_timesteps < kColumn ||
      header.num_timesteps > kMaxTimesteps || header.num_timesteps % kColumn)
    return ECGFAST_SHAPE;
  if (length < (header.raw() ? header.raw_bytes() : header.data_offset()))
    return ECGFAST_TRUNCATED;
  return ECGFAST_OK;
}

inline int32_t check_quantum(const Header& header) {
  const bool plain = header.quantum == kNoQuantum;
  if (header.quantum < kNoQuantum || (plain && header.trunc())) return ECGFAST_QUANTUM;
  if (header.raw() && (header.flags != kRaw || !plain)) return ECGFAST_QUANTUM;
  return ECGFAST_OK;
}

inline int32_t check_columns(const uint8_t* chunk, int64_t length, const Header& header) {
  if (header.raw()) return length == header.raw_bytes() ? ECGFAST_OK : ECGFAST_COLUMNS;
  int64_t last = 0;
  for (int j = 0; j < header.num_columns(); ++j) {
    const int64_t end = header.column_end(chunk, j);
    if (end < last) return ECGFAST_COLUMNS;
    last = end;
  }
  return header.data_offset() + last == length ? ECGFAST_OK : ECGFAST_COLUMNS;
}

struct Lead {
  const uint8_t* groups;
  uint32_t plane[3];
  int16_t base;
  uint8_t order, base_width;

  int width(int g) const {
    return base_width + (plane[0] >> g & 1) + 2 * (plane[1] >> g & 1) + 4 * (plane[2] >> g & 1);
  }
  int group_bytes() const {
    const int last = width(kGroups - 1);
    return kGroups * base_width + __builtin_popcount(plane[0]) +
           2 * __builtin_popcount(plane[1]) + 4 * __builtin_popcount(plane[2]) - last +
           ((last + 3) >> 2);
  }
};

struct Column {
  uint32_t predicted;
  Lead lead[kMaxLeads];
};

// Reads nothing outside [at, at + size). On success every group lies inside it.
inline int32_t parse_column(const uint8_t* at, int64_t size, int num_leads, Column& column) {
  const int fixed = 2 + 3 * num_leads;
  if (size < fixed || size > max_column_bytes(num_leads)) return ECGFAST_GROUPS;
  column.predicted = load<uint16_t>(at);
  if (column.predicted & ~(kPredictedLeads & ((1u << num_leads) - 1))) return ECGFAST_PREDICTED;
  const uint8_t* plane = at + fixed;
  for (int c = 0; c < num_leads; ++c) {
    Lead& lead = column.lead[c];
    const uint8_t descriptor = at[2 + c];
    const int num_planes = descriptor >> 2 & 3;
    lead.order = descriptor & 3;
    lead.base_width = descriptor >> 4;
    if (lead.order == 3 || lead.base_width + (1 << num_planes) - 1 > 16)
      return ECGFAST_DESCRIPTOR;
    lead.base = load<int16_t>(at + 2 + num_leads + 2 * c);
    if (plane + 4 * num_planes > at + size) return ECGFAST_GROUPS;
    for (int j = 0; j < 3; ++j) {
      lead.plane[j] = j < num_planes ? load<uint32_t>(plane) : 0;
      plane += j < num_planes ? 4 : 0;
    }
  }
  int64_t offset = plane - at;
  for (int c = 0; c < num_leads; ++c) {
    column.lead[c].groups = at + offset;  // at most 16 * 500 bytes further: checked right below
    offset += column.lead[c].group_bytes();
  }
  return (offset + 3) / 4 * 4 == size ? ECGFAST_OK : ECGFAST_GROUPS;
}

}  // namespace ecgfast
