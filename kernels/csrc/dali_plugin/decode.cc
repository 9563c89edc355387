// ecg_decode on the CPU: the native codec, one task per sample in DALI's thread pool.
#include "decode.h"

#include "../codec.h"

namespace ecgfast {
namespace {

// One chunk; returns an EcgfastStatus.
int32_t decode_sample(const dali::Workspace& workspace, int sample, int num_leads,
                      int num_timesteps, void* out) {
  const auto& chunk = workspace.Input<dali::CPUBackend>(0);
  const int64_t offset = 0, length = chunk.tensor_shape(sample).num_elements();
  const EcgfastChunks chunks{
      chunk.tensor<uint8_t>(sample), length, &offset, &length, 1, num_leads, num_timesteps};
  int64_t bad = -1;
  if (workspace.NumInput() == 1)
    return ecgfast_decode(&chunks, static_cast<int16_t*>(out), 1, 1, &bad);
  const float* const mean = workspace.Input<dali::CPUBackend>(1).tensor<float>(sample);
  const float* const rstd = workspace.Input<dali::CPUBackend>(2).tensor<float>(sample);
  return ecgfast_decode_patches(&chunks, mean, rstd, static_cast<uint16_t*>(out), 1, 1, &bad);
}

}  // namespace

template <>
void Decode<dali::CPUBackend>::RunImpl(dali::Workspace& workspace) {
  auto& decoded = workspace.Output<dali::CPUBackend>(0);
  auto& status = workspace.Output<dali::CPUBackend>(1);
  auto& pool = workspace.GetThreadPool();
  for (int sample = 0; sample < workspace.GetInputBatchSize(0); ++sample) {
    pool.AddWork([&, sample](int) {
      void* const out = decoded.raw_mutable_tensor(sample);
      *status.mutable_tensor<int32_t>(sample) =
          decode_sample(workspace, sample, num_leads_, num_timesteps_, out);
    });
  }
  pool.RunAll();
}

}  // namespace ecgfast

namespace dali {  // the macros name things of DALI without saying so

DALI_SCHEMA(EcgDecode)
    .DocStr("Decodes ecgpack chunks to int16, or to normalised patches of 250 timesteps.")
    .NumInput(1, 3)
    .NumOutput(2)
    .AddArg("num_leads", "Leads of a record.", ::DALI_INT64)
    .AddArg("num_timesteps", "Timesteps of a record.", ::DALI_INT64);

DALI_REGISTER_OPERATOR(EcgDecode, ecgfast::Decode<dali::CPUBackend>, CPU);

}  // namespace dali
