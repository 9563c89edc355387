// The CUDA kernels' entry points: pointers are device pointers, work is queued on `stream`, nothing
// waits.
#pragma once

#include <stdint.h>

#include "codec.h"  // ECGFAST_API

#ifdef __cplusplus
extern "C" {
#endif

// Chunks -> z-scored fp16 patches (num_records, num_leads * T / 250, 256), 16-byte aligned. Returns
// a cudaError_t.
ECGFAST_API int ecgfast_cuda_decode_patches(const uint8_t* bytes, int64_t num_bytes,
                                            const int64_t* offsets, const int64_t* lengths,
                                            const int64_t* records, int64_t num_stored,
                                            int64_t num_records, const float* mean,
                                            const float* rstd, int32_t num_leads,
                                            int32_t num_timesteps, void* out, int32_t* status,
                                            void* stream);

// Chunks -> int16 (num_records, num_leads, T), 4-byte aligned.
ECGFAST_API int ecgfast_cuda_decode(const uint8_t* bytes, int64_t num_bytes, const int64_t* offsets,
                                    const int64_t* lengths, const int64_t* records,
                                    int64_t num_stored, int64_t num_records, int32_t num_leads,
                                    int32_t num_timesteps, void* out, int32_t* status,
                                    void* stream);

// int16 (num_stored, num_leads, T) -> patches of the requested records.
ECGFAST_API int ecgfast_cuda_gather_patches(const int16_t* signal, const int64_t* records,
                                            int64_t num_stored, int64_t num_records,
                                            const float* mean, const float* rstd, int32_t num_leads,
                                            int32_t num_timesteps, void* out, int32_t* status,
                                            void* stream);

ECGFAST_API const char* ecgfast_cuda_error(int code);

#ifdef __cplusplus
}
#endif
