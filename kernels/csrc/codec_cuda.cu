// CUDA decoder of ecgpack: one kernel from a record's bytes to int16 or to normalised patches.
#include <cuda_runtime.h>

#include "codec_cuda.h"
#include "warp_decode.h"
#include "warp_gather.h"

namespace {

constexpr int kWarps = 4;  // per block; 8 blocks of 64 registers and 6.3 KB of shared memory per
                           // warp fill an H100's SM

template <class Output>
__global__ void __launch_bounds__(32 * kWarps, 8)
    decode_kernel(const __grid_constant__ ecgfast::device::Decode job) {
  extern __shared__ __align__(16) uint32_t shared[];
  const int num_columns = job.num_timesteps / ecgfast::kColumn;
  const int warp_index = static_cast<int>(threadIdx.x) / 32;
  const uint32_t task = blockIdx.x * kWarps + warp_index;
  const uint32_t row = task / num_columns;
  if (row >= job.num_records) return;  // whole warps leave
  const int words = ecgfast::device::stage_words(job.num_leads) + Output::kStageWords;
  ecgfast::device::decode_column<Output>(job, row, static_cast<int>(task - row * num_columns),
                                         shared + warp_index * words);
}

__global__ void __launch_bounds__(32 * kWarps)
    gather_kernel(const __grid_constant__ ecgfast::device::Gather job) {
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t row = task / job.num_leads;
  if (row < job.num_records)
    ecgfast::device::gather_lead(job, row, static_cast<int>(task - row * job.num_leads));
}

bool shape_allowed(int32_t num_leads, int32_t num_timesteps) {
  return num_leads >= 1 && num_leads <= ecgfast::kMaxLeads && num_timesteps >= ecgfast::kColumn &&
         num_timesteps <= 65500 && num_timesteps % ecgfast::kColumn == 0;
}

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class Output>
int launch(const ecgfast::device::Decode& job, uintptr_t alignment, void* stream) {
  if (!shape_allowed(job.num_leads, job.num_timesteps) || !aligned(job.bytes, 16) ||
      !aligned(job.out, alignment))
    return cudaErrorInvalidValue;
  if (job.num_records == 0) return cudaSuccess;
  const int64_t tasks = job.num_records * (job.num_timesteps / ecgfast::kColumn);
  const auto blocks = static_cast<unsigned>((tasks + kWarps - 1) / kWarps);
  const int shared_bytes =
      4 * kWarps * (ecgfast::device::stage_words(job.num_leads) + Output::kStageWords);
  decode_kernel<Output>
      <<<blocks, 32 * kWarps, shared_bytes, static_cast<cudaStream_t>(stream)>>>(job);
  return cudaGetLastError();
}

}  // namespace

extern "C" int ecgfast_cuda_decode_patches(const uint8_t* bytes, int64_t num_bytes,
                                           const int64_t* offsets, const int64_t* lengths,
                                           const int64_t* records, int64_t num_stored,
                                           int64_t num_records, const float* mean,
                                           const float* rstd, int32_t num_leads,
                                           int32_t num_timesteps, void* out, int32_t* status,
                                           void* stream) {
  return launch<ecgfast::device::Patches>(
      {bytes, num_bytes, offsets, lengths, records, num_stored, num_records, mean, rstd, out,
       status, num_leads, num_timesteps},
      16, stream);
}

extern "C" int ecgfast_cuda_decode(const uint8_t* bytes, int64_t num_bytes, const int64_t* offsets,
                                   const int64_t* lengths, const int64_t* records,
                                   int64_t num_stored, int64_t num_records, int32_t num_leads,
                                   int32_t num_timesteps, void* out, int32_t* status,
                                   void* stream) {
  return launch<ecgfast::device::Signal>(
      {bytes, num_bytes, offsets, lengths, records, num_stored, num_records, nullptr, nullptr, out,
       status, num_leads, num_timesteps},
      4, stream);
}

extern "C" int ecgfast_cuda_gather_patches(const int16_t* signal, const int64_t* records,
                                           int64_t num_stored, int64_t num_records,
                                           const float* mean, const float* rstd, int32_t num_leads,
                                           int32_t num_timesteps, void* out, int32_t* status,
                                           void* stream) {
  if (!shape_allowed(num_leads, num_timesteps) || !aligned(signal, 4) || !aligned(out, 16))
    return cudaErrorInvalidValue;
  if (num_records == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((num_records * num_leads + kWarps - 1) / kWarps);
  gather_kernel<<<blocks, 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(
      {signal, records, num_stored, num_records, mean, rstd, out, status, num_leads,
       num_timesteps});
  return cudaGetLastError();
}

extern "C" const char* ecgfast_cuda_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
