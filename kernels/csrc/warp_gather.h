// One warp gathers, normalises and cuts one lead of a raw int16 record, as warp_decode.h does with coded ones.
#pragma once

#include "codec_format.h"
#include "warp.h"

namespace ecgfast::device {

// The raw int16 store, resident: gather, normalise and cut into patches.
struct Gather {
  const int16_t* signal;   // (num_stored, num_leads, num_timesteps), 4-byte aligned
  const int64_t* records;  // (num_records,); null: row i takes record i
  int64_t num_stored;
  int64_t num_records;
  const float* mean;  // (num_stored, num_leads)
  const float* rstd;
  void* out;        // (num_records, num_leads * num_columns, 256) fp16
  int32_t* status;  // (num_records,)
  int32_t num_leads;
  int32_t num_timesteps;
};

// One warp: one lead of the record that goes into `row`, all its columns.
ECG_LANE void gather_lead(const Gather& job, int64_t row, int c) {
  const uint32_t lane = warp::lane_index();
  const int64_t record = job.records == nullptr ? row : warp::load_index(job.records + row);
  const bool known = record >= 0 && record < job.num_stored;
  if (!known && lane == 0) warp::record_status(job.status + row, ECGFAST_RANGE);
  const int64_t lead = (known ? record : 0) * job.num_leads + c;
  const float mean = known ? warp::load_float(job.mean + lead) : 0.0f;
  const float rstd = known ? warp::load_float(job.rstd + lead) : 0.0f;
  const auto* const words =
      reinterpret_cast<const uint32_t*>(job.signal + lead * job.num_timesteps);
  const int num_columns = job.num_timesteps / kColumn;
  auto* out = static_cast<uint8_t*>(job.out) +
              ((row * job.num_leads + c) * num_columns * kRow + 8 * lane) * 2;
#pragma unroll 4
  for (int j = 0; j < num_columns; ++j, out += 2 * kRow) {
    uint32_t pair[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const bool inside = known && 4 * lane + i < kColumn / 2;
      const uint32_t word = inside ? warp::load_word(words + j * (kColumn / 2) + 4 * lane + i) : 0;
      const float low = warp::normalise(static_cast<int16_t>(word), mean, rstd);
      const float high = warp::normalise(static_cast<int32_t>(word) >> 16, mean, rstd);
      pair[i] = inside ? warp::pack_halves(low, high) : 0;
    }
    warp::store_words(out, pair[0], pair[1], pair[2], pair[3]);
  }
}

}  // namespace ecgfast::device
