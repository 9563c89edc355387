// Decoding a record, over the primitives of one instruction set:
//   Simd::unpack(lead, row)          residuals of one row, differences undone, base added
//   Simd::half(row, mean, rstd, out) 256 fp16, the last 6 are 0
#pragma once
#include "codec_backend.h"
#include "codec_rows.h"

namespace ecgfast {
namespace {

template <class Simd, class Sink>
int32_t decode_columns(const Chunk& chunk, Sink sink) {
  alignas(64) int16_t rows[kMaxLeads][kRow];
  alignas(64) int16_t predicted[kRow];
  uint8_t padded[max_column_bytes(kMaxLeads) + kOverread];
  const Header& header = chunk.header;
  const uint8_t* at = chunk.data + header.data_offset();
  int64_t start = 0;
  for (int j = 0; j < header.num_columns(); ++j) {
    const int64_t end = header.column_end(chunk.data, j);
    const uint8_t* bytes = at + start;
    const int64_t size = end - start;
    if (chunk.readable - bytes < size + kOverread && size <= max_column_bytes(kMaxLeads)) {
      std::memcpy(padded, bytes, size);
      std::memset(padded + size, 0, kOverread);
      bytes = padded;
    }
    Column column;
    if (int32_t status = parse_column(bytes, size, header.num_leads, column)) return status;
    for (int c = 0; c < header.num_leads; ++c) {
      Simd::unpack(column.lead[c], rows[c]);
      if (column.predicted >> c & 1) {
        predict(rows[0], rows[1], rows[c - 1], c, predicted);
        for (int t = 0; t < kRow; ++t) rows[c][t] = int16_t(rows[c][t] + predicted[t]);
      }
    }
    if (header.quantum != kNoQuantum)
      for (int c = 0; c < header.num_leads; ++c)
        undo_quantum(rows[c], header.quantum, header.trunc());
    for (int c = 0; c < header.num_leads; ++c) sink(c, j, rows[c]);
    start = end;
  }
  return ECGFAST_OK;
}

template <class Simd>
void patches(const int16_t* signal_CT, int num_leads, int num_timesteps, const float* mean_C,
             const float* rstd_C, uint16_t* out_NP) {
  const int num_columns = num_timesteps / kColumn;
  alignas(64) int16_t row[kRow] = {};
  for (int c = 0; c < num_leads; ++c)
    for (int j = 0; j < num_columns; ++j) {
      std::memcpy(row, signal_CT + int64_t(c) * num_timesteps + j * kColumn,
                  kColumn * sizeof(int16_t));
      Simd::half(row, mean_C[c], rstd_C[c], out_NP + int64_t(c * num_columns + j) * kRow);
    }
}

template <class Simd>
int32_t decode(const Chunk& chunk, int16_t* out_CT) {
  const int num_timesteps = chunk.header.num_timesteps;
  if (chunk.header.raw()) {
    std::memcpy(out_CT, chunk.data + kHeaderBytes, chunk.header.raw_bytes() - kHeaderBytes);
    return ECGFAST_OK;
  }
  return decode_columns<Simd>(chunk, [=](int c, int j, const int16_t* row) {
    int16_t* out = out_CT + int64_t(c) * num_timesteps + j * kColumn;
    std::memcpy(out, row, kColumn * sizeof *row);
    // Twelve rows 10 kB apart are more than a hardware prefetcher follows.
    if ((j + 1) * kColumn < num_timesteps)
      for (int t = kColumn; t < 2 * kColumn; t += 32) __builtin_prefetch(out + t, 1);
  });
}

template <class Simd>
int32_t decode_patches(const Chunk& chunk, const float* mean_C, const float* rstd_C,
                       uint16_t* out_NP) {
  const Header& header = chunk.header;
  const int num_columns = header.num_columns();
  if (!header.raw())
    return decode_columns<Simd>(chunk, [=](int c, int j, const int16_t* row) {
      Simd::half(row, mean_C[c], rstd_C[c], out_NP + int64_t(c * num_columns + j) * kRow);
    });
  alignas(64) int16_t row[kRow] = {};
  for (int c = 0; c < header.num_leads; ++c)
    for (int j = 0; j < num_columns; ++j) {
      const int64_t first = int64_t(c) * header.num_timesteps + j * kColumn;
      std::memcpy(row, chunk.data + kHeaderBytes + 2 * first, kColumn * sizeof *row);
      Simd::half(row, mean_C[c], rstd_C[c], out_NP + int64_t(c * num_columns + j) * kRow);
    }
  return ECGFAST_OK;
}

}  // namespace
}  // namespace ecgfast
