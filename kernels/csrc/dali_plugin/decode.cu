// ecg_decode on a GPU: the kernels of codec_cuda.cu over the samples of a batch.
#include <algorithm>

#include "../codec_cuda.h"
#include "dali/core/cuda_error.h"
#include "dali/kernels/dynamic_scratchpad.h"
#include "decode.h"

namespace ecgfast {

template <>
void Decode<dali::GPUBackend>::RunImpl(dali::Workspace& workspace) {
  const auto& chunks = workspace.Input<dali::GPUBackend>(0);
  auto& decoded = workspace.Output<dali::GPUBackend>(0);
  auto& status = workspace.Output<dali::GPUBackend>(1);
  const int samples = chunks.num_samples();
  if (samples == 0) return;
  const cudaStream_t stream = workspace.stream();

  // The kernel wants one buffer and offsets; samples may lie anywhere, so the buffer starts at the
  // lowest of them. DALI's allocations are aligned to 256 bytes, what precedes a sample is its own.
  std::vector<int64_t> table(2 * samples);  // offsets, then lengths
  uintptr_t lowest = UINTPTR_MAX, highest = 0;
  for (int i = 0; i < samples; ++i) {
    const auto at = reinterpret_cast<uintptr_t>(chunks.raw_tensor(i));
    table[samples + i] = chunks.tensor_shape(i).num_elements();
    lowest = std::min(lowest, at & ~uintptr_t{15});
    highest = std::max(highest, at + table[samples + i]);
  }
  for (int i = 0; i < samples; ++i)
    table[i] = static_cast<int64_t>(reinterpret_cast<uintptr_t>(chunks.raw_tensor(i)) - lowest);

  dali::kernels::DynamicScratchpad scratchpad(stream);
  const int64_t* const offsets = scratchpad.ToGPU(stream, table);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(lowest);
  const auto num_bytes = static_cast<int64_t>(highest - lowest);
  DALI_ENFORCE(decoded.IsContiguousInMemory() && status.IsContiguousInMemory());
  auto* const codes = static_cast<int32_t*>(status.raw_mutable_tensor(0));
  CUDA_CALL(cudaMemsetAsync(codes, 0, samples * sizeof(int32_t), stream));
  void* const out = decoded.raw_mutable_tensor(0);
  int error;
  if (workspace.NumInput() == 1) {
    error = ecgfast_cuda_decode(bytes, num_bytes, offsets, offsets + samples, nullptr, samples,
                                samples, num_leads_, num_timesteps_, out, codes, stream);
  } else {
    const auto& mean = workspace.Input<dali::GPUBackend>(1);
    const auto& rstd = workspace.Input<dali::GPUBackend>(2);
    DALI_ENFORCE(mean.IsContiguousInMemory() && rstd.IsContiguousInMemory(),
                 "ecg_decode: mean and rstd must each be contiguous, as after .gpu()");
    error =
        ecgfast_cuda_decode_patches(bytes, num_bytes, offsets, offsets + samples, nullptr, samples,
                                    samples, mean.tensor<float>(0), rstd.tensor<float>(0),
                                    num_leads_, num_timesteps_, out, codes, stream);
  }
  CUDA_CALL(static_cast<cudaError_t>(error));
}

}  // namespace ecgfast

namespace dali {

DALI_REGISTER_OPERATOR(EcgDecode, ecgfast::Decode<dali::GPUBackend>, GPU);

}  // namespace dali
