// The C interface of the native codec: what ctypes calls. The format is docs/format.md, chapter 2.
//
// Every array is C-contiguous. Functions that can fail return an EcgfastStatus. Thread counts are
// at least 1; the calling thread counts as one of them.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define ECGFAST_API __declspec(dllexport)
#else
#define ECGFAST_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum EcgfastStatus {
  ECGFAST_OK = 0,
  ECGFAST_TRUNCATED = 1,
  ECGFAST_MAGIC = 2,
  ECGFAST_SHAPE = 3,
  ECGFAST_CHECKSUM = 4,
  ECGFAST_QUANTUM = 5,
  ECGFAST_COLUMNS = 6,
  ECGFAST_PREDICTED = 7,
  ECGFAST_DESCRIPTOR = 8,
  ECGFAST_GROUPS = 9,
  ECGFAST_RANGE = 100,    // an offset or a length points outside the buffer
  ECGFAST_BACKEND = 101,  // this machine cannot run the requested backend
  ECGFAST_MEMORY = 102,
};

// Chunks of one call: chunk i is buffer[offsets[i], offsets[i] + lengths[i]).
struct EcgfastChunks {
  const uint8_t* buffer;
  int64_t buffer_bytes;
  const int64_t* offsets;
  const int64_t* lengths;
  int64_t num_records;
  int32_t num_leads;
  int32_t num_timesteps;
};

// "avx512vbmi", "avx2" or "portable": the fastest this machine has, or the one that was set.
ECGFAST_API const char* ecgfast_backend(void);
ECGFAST_API int32_t ecgfast_set_backend(const char* name);

// Bytes that one record may take in the output of ecgfast_encode.
ECGFAST_API int64_t ecgfast_encode_bound(int32_t num_leads, int32_t num_timesteps);

// signal (N, C, T) -> chunk i at out + i * stride, stride >= the bound; lengths (N,) is filled.
ECGFAST_API int32_t ecgfast_encode(const int16_t* signal, int64_t num_records, int32_t num_leads,
                                   int32_t num_timesteps, uint8_t* out, int64_t stride,
                                   int64_t* lengths, int32_t num_threads);

// out (N, C, T). On an error, *bad is the lowest index of a bad chunk; the others are decoded.
ECGFAST_API int32_t ecgfast_decode(const struct EcgfastChunks* chunks, int16_t* out,
                                   int32_t num_threads, int32_t check, int64_t* bad);

// mean, rstd (N, C); out (N, C * T / 250, 256) fp16, docs/format.md 2.6.
ECGFAST_API int32_t ecgfast_decode_patches(const struct EcgfastChunks* chunks, const float* mean,
                                           const float* rstd, uint16_t* out, int32_t num_threads,
                                           int32_t check, int64_t* bad);

// The same patches from decoded values: signal (N, C, T).
ECGFAST_API void ecgfast_patches(const int16_t* signal, int64_t num_records, int32_t num_leads,
                                 int32_t num_timesteps, const float* mean, const float* rstd,
                                 uint16_t* out, int32_t num_threads);

// signal (rows, T), valid (rows, T) bytes or null -> mean, std (rows,). -32768 is left out.
ECGFAST_API void ecgfast_lead_statistics(const int16_t* signal, const uint8_t* valid,
                                         int64_t num_rows, int64_t num_timesteps, float* mean,
                                         float* std);

// signal (N, 12, T) at 500 Hz -> correlation (N, 28) of the leads' slopes, beats (N, 32) in
// milliseconds, 0xffff behind the last; zeros and no beats where fewer timesteps hold a signal.
ECGFAST_API void ecgfast_fingerprints(const int16_t* signal, int64_t num_records,
                                      int64_t num_timesteps, int64_t least_timesteps,
                                      float* correlation, uint16_t* beats);

// signal and valid (N, 12, T) at 500 Hz, spike_limit (N, 12) -> measures (11, N, 12), spikes (N,);
// valid may be null.
ECGFAST_API void ecgfast_lead_measures(const int16_t* signal, const uint8_t* valid,
                                       int64_t num_records, int64_t num_timesteps,
                                       int64_t spike_leads, const float* spike_limit,
                                       float* measures, int32_t* spikes);

// frames (T, S) -> rows (S, T), and the sum of each row mod 2^16 in sums (S,).
ECGFAST_API void ecgfast_deinterleave(const int16_t* frames, int64_t num_timesteps,
                                      int64_t num_signals, int16_t* rows, uint16_t* sums);

ECGFAST_API uint32_t ecgfast_crc32c(const uint8_t* data, int64_t num_bytes);

// Record numbers in the order in which an epoch visits them: out (N,).
ECGFAST_API int32_t ecgfast_epoch_order(uint64_t seed, uint32_t epoch, int64_t num_records,
                                        int64_t* out);

#ifdef __cplusplus
}
#endif
