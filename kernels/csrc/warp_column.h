// Where a column of an ecgpack chunk lies and what its leads need: checks, copy into shared memory,
// head of the column. Nothing is read outside the buffer of all chunks, for any content
// (docs/format.md, 2.4).
#pragma once

#include "codec_format.h"
#include "warp.h"

namespace ecgfast::device {

constexpr int kGroup = 8;  // timesteps of a group, and of a lane

// The chunks and what to decode them to; every pointer is to memory that the device reads.
struct Decode {
  const uint8_t* bytes;  // 16-byte aligned
  int64_t num_bytes;
  const int64_t* offsets;  // (num_stored,) first byte of each chunk, any alignment
  const int64_t* lengths;  // (num_stored,)
  const int64_t*
      records;  // (num_records,) which chunk goes into each row; null: row i takes chunk i
  int64_t num_stored;
  int64_t num_records;
  const float* mean;  // (num_stored, num_leads); null when the output is int16
  const float* rstd;  // (num_stored, num_leads)
  void* out;  // (num_records, num_leads * num_columns, 256) fp16, or (num_records, num_leads, T)
              // int16
  int32_t* status;  // (num_records,), 0 from the caller; the lowest code of a bad record stays
  int32_t num_leads;
  int32_t num_timesteps;
};

// Where a column lies in `bytes`, or why it cannot be decoded.
struct Column {
  EcgfastStatus status;
  uint32_t flags;
  uint32_t quantum;
  int64_t begin;  // RAW: first value of lead 0
  uint32_t size;  // bytes
};

// Shared memory per warp: up to 15 bytes before an unaligned column, 20 that the last group's
// windows read beyond it.
ECG_BOTH int stage_words(int leads) {
  return (15 + 2 + leads * (3 + 12 + 31 * 16 + 4) + 3 + 20 + 15) / 16 * 4;
}

ECG_LANE uint32_t read_u16(const uint8_t* at) {
  return warp::load_byte(at) | warp::load_byte(at + 1) << 8;
}
ECG_LANE uint32_t read_u32(const uint8_t* at) { return read_u16(at) | read_u16(at + 2) << 16; }
ECG_LANE int32_t read_i16(const uint8_t* at) { return static_cast<int16_t>(read_u16(at)); }

// Check everything about the record that this column depends on, before a byte of the column is
// read.
ECG_LANE Column find_column(const Decode& job, int64_t record, int column) {
  Column found{ECGFAST_OK, 0, 0, 0, 0};
  const auto refuse = [&](EcgfastStatus status) {
    found.status = status;
    return found;
  };
  const int64_t offset = warp::load_index(job.offsets + record);
  const int64_t length = warp::load_index(job.lengths + record);
  if (offset < 0 || length < 0 || offset > job.num_bytes || length > job.num_bytes - offset)
    return refuse(ECGFAST_RANGE);
  if (length < kHeaderBytes) return refuse(ECGFAST_TRUNCATED);
  const uint8_t* const chunk = job.bytes + offset;
  const uint32_t magic = read_u32(chunk);
  found.flags = magic >> 24;
  if ((magic & 0xffffffu) != 0x015045u || found.flags > (kRaw | kTrunc | kWide) ||
      warp::load_byte(chunk + 7) != kGroup)
    return refuse(ECGFAST_MAGIC);
  if (static_cast<int32_t>(read_u16(chunk + 4)) != job.num_timesteps ||
      static_cast<int32_t>(warp::load_byte(chunk + 6)) != job.num_leads)
    return refuse(ECGFAST_SHAPE);
  const int num_columns = job.num_timesteps / kColumn;
  const bool raw = found.flags & kRaw, wide = found.flags & kWide;
  const int64_t values = kHeaderBytes + int64_t{2} * job.num_leads * job.num_timesteps;
  const int64_t data = (kHeaderBytes + (wide ? 4 : 2) * num_columns + 3) / 4 * 4;
  if (length < (raw ? values : data)) return refuse(ECGFAST_TRUNCATED);
  found.quantum = read_u32(chunk + 8);
  const bool plain = found.quantum == kNoQuantum;
  if (found.quantum < kNoQuantum || (plain && found.flags & kTrunc) ||
      (raw && (found.flags != kRaw || !plain)))
    return refuse(ECGFAST_QUANTUM);
  if (raw) {
    found.begin = offset + kHeaderBytes + 2 * kColumn * column;
    return length > values ? refuse(ECGFAST_COLUMNS) : found;
  }
  const auto end_of = [&](int index) -> int64_t {
    const uint8_t* const entry = chunk + kHeaderBytes + (wide ? 4 : 2) * index;
    return 4 * static_cast<int64_t>(wide ? read_u32(entry) : read_u16(entry));
  };
  const int64_t begin = column > 0 ? end_of(column - 1) : 0, end = end_of(column);
  if (begin > end || data + end > length || data + end_of(num_columns - 1) != length)
    return refuse(ECGFAST_COLUMNS);
  found.begin = offset + data + begin;
  found.size = static_cast<uint32_t>(end - begin);
  return found;
}

// Sum of `value` over the lanes below this one.
ECG_LANE uint32_t sum_below(uint32_t value) {
  uint32_t sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) sum = warp::plus_below(sum, distance);
  return sum - value;
}

// The column's bytes in shared memory: whole 16-byte granules, so it starts `skip` bytes in.
// Returns skip.
ECG_LANE uint32_t stage_column(const Decode& job, const Column& column, uint32_t* stage) {
  const uint32_t skip = static_cast<uint32_t>(column.begin & 15);
  const int64_t first = column.begin - skip;
  const uint32_t limit = 4u * stage_words(job.num_leads);
  const uint32_t wanted = skip + column.size < limit ? skip + column.size : limit;
  for (uint32_t at = 16 * warp::lane_index(); at < wanted; at += 16 * 32) {
    const int64_t left = job.num_bytes - first - at;
    warp::copy_async(stage + at / 4, job.bytes + first + at,
                     left < 16 ? static_cast<uint32_t>(left) : 16u);
  }
  warp::wait_copies();
  return skip;
}

// 32 bits from any byte of the stage.
ECG_LANE uint32_t staged_u32(const uint32_t* stage, uint32_t byte) {
  const uint32_t* const word = stage + byte / 4;
  return warp::funnel(warp::load_shared(word), warp::load_shared(word + 1), 8 * byte);
}

// Everything about one lead of the column; lane c finds that of lead c, then each lead's is
// broadcast in turn.
struct Lead {
  uint32_t start;     // first byte of its groups in the stage
  uint32_t packed;    // base in the low half, then order (2 bits), wb (4 bits), predicted (1 bit)
  uint32_t plane[3];  // 0 where cb is smaller

  ECG_LANE uint32_t base() const { return packed & 0xffff; }
  ECG_LANE uint32_t order() const { return packed >> 16 & 3; }
  ECG_LANE uint32_t base_width() const { return packed >> 18 & 15; }
  ECG_LANE bool predicted() const { return packed >> 22; }
};

// Check the column's head and find where the groups of every lead start.
ECG_LANE EcgfastStatus read_leads(const uint32_t* stage, uint32_t skip, uint32_t size,
                                  uint32_t num_leads, Lead& lead) {
  const uint32_t lane = warp::lane_index(), c = lane < num_leads ? lane : 0,
                 mine = lane < num_leads;
  const uint32_t fixed = 2 + 3 * num_leads;
  const uint32_t predicted = staged_u32(stage, skip) & 0xffff;
  const uint32_t descriptor = staged_u32(stage, skip + 2 + c) & 0xff;
  const uint32_t order = descriptor & 3, planes = descriptor >> 2 & 3, base_width = descriptor >> 4;
  const uint32_t planes_below = sum_below(mine * planes);
  lead.packed = (staged_u32(stage, skip + 2 + num_leads + 2 * c) & 0xffff) | order << 16 |
                base_width << 18 | (predicted >> c & 1) << 22;
  uint32_t at = skip + fixed + 4 * planes_below, codes = 0, last = 0;
#pragma unroll
  for (uint32_t j = 0; j < 3; ++j) {
    lead.plane[j] = j < planes ? staged_u32(stage, at + 4 * j) : 0;
    codes += warp::count_bits(lead.plane[j] & 0x7fffffffu) << j;
    last += (lead.plane[j] >> 31) << j;
  }
  const uint32_t bytes = 31 * base_width + codes + ((base_width + last + 3) >> 2);
  const uint32_t bytes_below = sum_below(mine * bytes);
  const uint32_t all_planes =
      warp::broadcast(planes_below + planes, static_cast<int>(num_leads) - 1);
  const uint32_t all_bytes = warp::broadcast(bytes_below + bytes, static_cast<int>(num_leads) - 1);
  const bool bad_descriptor =
      warp::any(mine && (order == 3 || base_width + (1u << planes) - 1 > 16));
  lead.start = skip + fixed + 4 * all_planes + bytes_below;
  if (size < fixed) return ECGFAST_GROUPS;
  if (predicted & ~(kPredictedLeads & ((1u << num_leads) - 1))) return ECGFAST_PREDICTED;
  if (bad_descriptor) return ECGFAST_DESCRIPTOR;
  return ((fixed + 4 * all_planes + all_bytes + 3) & ~3u) == size ? ECGFAST_OK : ECGFAST_GROUPS;
}

}  // namespace ecgfast::device
