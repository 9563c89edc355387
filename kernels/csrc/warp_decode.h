// One warp decodes one column of one ecgpack chunk (docs/format.md, chapter 2). Shared by the CUDA
// kernels, the DALI operator and, over emulated lanes, the tests.
//
// Lane g holds group g: timesteps 8 g to 8 g + 7 of one lead at a time. The column is copied into
// shared memory first, so that all its bytes are in flight at once; then each group finds its place
// by counting bits of the planes below it, and warp scans undo the differences. Shuffles stand
// outside every branch: inside one, sm_80 calls convergence routines.
#pragma once

#include "warp_column.h"

namespace ecgfast::device {

ECG_LANE Lead broadcast(const Lead& mine, int lead) {
  return {warp::broadcast(mine.start, lead),
          warp::broadcast(mine.packed, lead),
          {warp::broadcast(mine.plane[0], lead), warp::broadcast(mine.plane[1], lead),
           warp::broadcast(mine.plane[2], lead)}};
}

// Residuals of this lane's group. Two windows of 64 bits hold four each, whatever the width from 0
// to 16.
ECG_LANE void unpack_group(const uint32_t* stage, const Lead& lead, uint32_t (&value)[kGroup]) {
  const uint32_t lane = warp::lane_index();
  uint32_t byte = lead.start + lane * lead.base_width(), width = lead.base_width();
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    byte += warp::count_bits(lead.plane[j] & ((1u << lane) - 1)) << j;
    width += (lead.plane[j] >> lane & 1) << j;
  }
  const uint32_t drop_one = 32 - width, drop_two = 32 - 2 * width;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t bit = 8 * byte + half * 4 * width;
    const uint32_t* const word = stage + bit / 32;
    const uint32_t middle = warp::load_shared(word + 1);
    const uint32_t low = warp::funnel(warp::load_shared(word), middle, bit);
    const uint32_t high = warp::funnel(middle, warp::load_shared(word + 2), bit);
    const uint32_t pair[2] = {low, warp::funnel_to_32(low, high, 2 * width)};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      value[4 * half + 2 * j] =
          warp::shift_right_signed(warp::shift_left(pair[j], drop_one), drop_one);
      value[4 * half + 2 * j + 1] =
          warp::shift_right_signed(warp::shift_left(pair[j], drop_two), drop_one);
    }
  }
}

// Running sums where `on` is 1, nothing where it is 0: a multiplication costs less than a branch.
ECG_LANE void sum_in_lane(uint32_t (&value)[kGroup], uint32_t on) {
#pragma unroll
  for (int i = 1; i < kGroup; ++i) value[i] += on * value[i - 1];
}

// Undo the differences: residuals become values modulo 2^16, without their prediction.
ECG_LANE void integrate(const Lead& lead, uint32_t (&value)[kGroup]) {
  const uint32_t once = lead.order() >= 1, twice = lead.order() == 2;
  sum_in_lane(value, once);
  const uint32_t below = sum_below(once * value[kGroup - 1]);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) value[i] += twice * below;
  sum_in_lane(value, twice);
  const uint32_t below_twice = sum_below(twice * value[kGroup - 1]);
  const uint32_t add = lead.base() + (twice ? below_twice : below);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) value[i] += add;
}

// Values before the quantum of the leads that predict others, sign-extended.
struct Parents {
  int32_t one[kGroup], two[kGroup], last[kGroup];  // I, II, the lead before
};

template <class Rule>
ECG_LANE void add_each(uint32_t (&value)[kGroup], Rule rule) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) value[i] += static_cast<uint32_t>(rule(i));
}

ECG_LANE void predict(const Parents& k, int c, uint32_t (&value)[kGroup]) {
  switch (c) {  // the same for the whole warp
    case 2:
      return add_each(value, [&](int i) { return k.two[i] - k.one[i]; });
    case 3:
      return add_each(value, [&](int i) { return -((k.one[i] + k.two[i]) >> 1); });
    case 4:
      return add_each(value, [&](int i) { return k.one[i] - (k.two[i] >> 1); });
    case 5:
      return add_each(value, [&](int i) { return k.two[i] - (k.one[i] >> 1); });
    default:
      return add_each(value, [&](int i) { return k.last[i]; });
  }
}

ECG_LANE int32_t undo_quantum(int32_t k, uint32_t quantum, uint32_t rounding) {
  const uint32_t size = static_cast<uint32_t>(k < 0 ? -k : k);
  const int32_t v = static_cast<int32_t>((size * quantum + rounding) >> 16);
  return static_cast<int16_t>(k < 0 ? -v : v);
}

// The output as z-scored fp16: one row of 256 per lead and column, 16 bytes per lane.
struct Patches {
  static constexpr int kStageWords = 0;

  ECG_LANE static int64_t lead_bytes(int num_timesteps) {
    return num_timesteps / kColumn * kRow * 2;
  }
  ECG_LANE static int64_t column_bytes() { return kRow * 2; }

  ECG_LANE static void write(uint8_t* out, float mean, float rstd, const int32_t (&value)[kGroup],
                             uint32_t*) {
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pair[i] = warp::pack_halves(warp::normalise(value[2 * i], mean, rstd),
                                  warp::normalise(value[2 * i + 1], mean, rstd));
    const uint32_t lane = warp::lane_index(),
                   keep = lane == 31 ? 0u : ~0u;  // columns 250 to 255 are padding
    warp::store_words(out + 2 * kGroup * lane, pair[0], pair[1] & keep, pair[2] & keep,
                      pair[3] & keep);
  }
};

// The output as int16: a row of 500 bytes starts at any multiple of 4, so lanes exchange words through
// shared memory.
struct Signal {
  static constexpr int kStageWords = 128;

  ECG_LANE static int64_t lead_bytes(int num_timesteps) { return num_timesteps * 2; }
  ECG_LANE static int64_t column_bytes() { return kColumn * 2; }

  ECG_LANE static void write(uint8_t* out, float, float, const int32_t (&value)[kGroup],
                             uint32_t* trade) {
    const uint32_t lane = warp::lane_index();
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pair[i] = (static_cast<uint32_t>(value[2 * i]) & 0xffffu) |
                static_cast<uint32_t>(value[2 * i + 1]) << 16;
    warp::sync();
    warp::store_words(trade + 4 * lane, pair[0], pair[1], pair[2], pair[3]);
    warp::sync();
#pragma unroll
    for (uint32_t word = lane; word < 128; word += 32)
      if (word < kColumn / 2)
        warp::store_word(reinterpret_cast<uint32_t*>(out) + word, warp::load_shared(trade + word));
  }
};

// Values of a RAW chunk: rare, so byte by byte whatever the alignment.
ECG_LANE void read_raw(const Decode& job, const Column& column, int c, int32_t (&value)[kGroup]) {
  const uint8_t* const lead = job.bytes + column.begin + int64_t{2} * c * job.num_timesteps;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int t = kGroup * static_cast<int>(warp::lane_index()) + i;
    value[i] = t < kColumn ? read_i16(lead + 2 * t) : 0;
  }
}

// Columns that are not coded: RAW values, or zeros for a column that was refused.
template <class Output>
ECG_LANE void write_uncoded(const Decode& job, uint8_t* out, int64_t record, const Column& column,
                            uint32_t* trade) {
  for (int c = 0; c < job.num_leads; ++c, out += Output::lead_bytes(job.num_timesteps)) {
    int32_t value[kGroup] = {};
    const bool good = column.status == ECGFAST_OK;
    if (good) read_raw(job, column, c, value);
    const bool scaled = good && job.mean != nullptr;
    const float mean = scaled ? warp::load_float(job.mean + record * job.num_leads + c) : 0.0f;
    const float rstd = scaled ? warp::load_float(job.rstd + record * job.num_leads + c) : 0.0f;
    Output::write(out, mean, rstd, value, trade);
  }
}

// A coded column whose leads were found.
template <class Output>
ECG_LANE void write_coded(const Decode& job, uint8_t* out, int64_t record, const Column& column,
                          const Lead& mine, uint32_t* stage) {
  const uint32_t lane = warp::lane_index();
  const bool scales = job.mean != nullptr && lane < static_cast<uint32_t>(job.num_leads);
  const int64_t statistics = record * job.num_leads + lane;
  const float my_mean = scales ? warp::load_float(job.mean + statistics) : 0.0f;
  const float my_rstd = scales ? warp::load_float(job.rstd + statistics) : 0.0f;
  const uint32_t rounding = column.flags & kTrunc ? 0 : 32768;
  Parents k{};
#pragma unroll 1
  for (int c = 0; c < job.num_leads; ++c, out += Output::lead_bytes(job.num_timesteps)) {
    const Lead lead = broadcast(mine, c);
    const float mean = warp::bits_float(warp::broadcast(warp::float_bits(my_mean), c));
    const float rstd = warp::bits_float(warp::broadcast(warp::float_bits(my_rstd), c));
    uint32_t wrapped[kGroup];  // modulo 2^16 in the low half
    unpack_group(stage, lead, wrapped);
    integrate(lead, wrapped);
    if (lead.predicted()) predict(k, c, wrapped);
    int32_t value[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) k.last[i] = value[i] = static_cast<int16_t>(wrapped[i]);
    if (c < 2)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        k.one[i] = c == 0 ? value[i] : k.one[i];
        k.two[i] = value[i];  // lead I until lead II overwrites it
      }
    if (column.quantum != kNoQuantum)
#pragma unroll
      for (int i = 0; i < kGroup; ++i) value[i] = undo_quantum(value[i], column.quantum, rounding);
    Output::write(out, mean, rstd, value, stage + stage_words(job.num_leads));
  }
}

// One warp: column j of the record that goes into `row`. `stage` holds stage_words() and
// Output::kStageWords.
template <class Output>
ECG_LANE void decode_column(const Decode& job, int64_t row, int j, uint32_t* stage) {
  const int64_t record = job.records == nullptr ? row : warp::load_index(job.records + row);
  const bool known = record >= 0 && record < job.num_stored;
  Column column = known ? find_column(job, record, j) : Column{ECGFAST_RANGE, 0, 0, 0, 0};
  uint8_t* const out = static_cast<uint8_t*>(job.out) +
                       row * job.num_leads * Output::lead_bytes(job.num_timesteps) +
                       j * Output::column_bytes();
  Lead mine{};
  if (column.status == ECGFAST_OK && !(column.flags & kRaw)) {
    const uint32_t skip = stage_column(job, column, stage);
    column.status = read_leads(stage, skip, column.size, job.num_leads, mine);
  }
  if (column.status != ECGFAST_OK && warp::lane_index() == 0)
    warp::record_status(job.status + row, column.status);
  if (column.status != ECGFAST_OK || column.flags & kRaw)
    write_uncoded<Output>(job, out, record, column, stage + stage_words(job.num_leads));
  else
    write_coded<Output>(job, out, record, column, mine, stage);
}

}  // namespace ecgfast::device
