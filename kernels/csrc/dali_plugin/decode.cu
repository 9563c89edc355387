// ecg_decode on a GPU: one kernel of codec_cuda.cu, queued on DALI's stream.
#include "../codec_cuda.h"
#include "dali/core/cuda_error.h"
#include "decode.h"

namespace ecgfast {

template <>
void Decode<dali::GPUBackend>::RunImpl(dali::Workspace& workspace) {
  const int64_t num_bytes = workspace.GetInputShape(0)[0].num_elements();
  const int64_t num_records = workspace.GetInputShape(1)[0].num_elements();
  const auto* const bytes = data<uint8_t>(workspace, 0);
  const auto* const offsets = data<int64_t>(workspace, 1);
  const auto* const lengths = data<int64_t>(workspace, 2);
  void* const out = workspace.Output<dali::GPUBackend>(0).raw_mutable_tensor(0);
  auto* const status = workspace.Output<dali::GPUBackend>(1).mutable_tensor<int32_t>(0);
  const cudaStream_t stream = workspace.stream();

  CUDA_CALL(cudaMemsetAsync(status, 0, num_records * sizeof(int32_t), stream));
  const int error =
      normalises(workspace)
          ? ecgfast_cuda_decode_patches(bytes, num_bytes, offsets, lengths, nullptr, num_records,
                                        num_records, data<float>(workspace, 3),
                                        data<float>(workspace, 4), num_leads_, num_timesteps_, out,
                                        status, stream)
          : ecgfast_cuda_decode(bytes, num_bytes, offsets, lengths, nullptr, num_records,
                                num_records, num_leads_, num_timesteps_, out, status, stream);
  CUDA_CALL(static_cast<cudaError_t>(error));
}

}  // namespace ecgfast

namespace dali {

DALI_REGISTER_OPERATOR(EcgDecode, ecgfast::Decode<dali::GPUBackend>, GPU);

}  // namespace dali
