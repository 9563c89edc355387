// ecg_decode on the CPU: the native codec, one task per record in DALI's thread pool.
#include "decode.h"

#include "../codec.h"

namespace ecgfast {

template <>
void Decode<dali::CPUBackend>::RunImpl(dali::Workspace& workspace) {
  const int64_t num_bytes = workspace.GetInputShape(0)[0].num_elements();
  const int64_t num_records = workspace.GetInputShape(1)[0].num_elements();
  const int64_t leads = num_leads_, timesteps = num_timesteps_;
  const auto* const bytes = data<uint8_t>(workspace, 0);
  const auto* const offsets = data<int64_t>(workspace, 1);
  const auto* const lengths = data<int64_t>(workspace, 2);
  const float* const mean = normalises(workspace) ? data<float>(workspace, 3) : nullptr;
  const float* const rstd = normalises(workspace) ? data<float>(workspace, 4) : nullptr;
  void* const out = workspace.Output<dali::CPUBackend>(0).raw_mutable_tensor(0);
  auto* const status = workspace.Output<dali::CPUBackend>(1).mutable_tensor<int32_t>(0);

  auto& pool = workspace.GetThreadPool();
  for (int64_t i = 0; i < num_records; ++i)
    pool.AddWork([=](int) {
      const EcgfastChunks chunk{bytes, num_bytes,  offsets + i,   lengths + i,
                                1,     num_leads_, num_timesteps_};
      int64_t bad = -1;
      if (mean == nullptr)
        status[i] = ecgfast_decode(&chunk, static_cast<int16_t*>(out) + i * leads * timesteps, 1, 1,
                                   &bad);
      else
        status[i] = ecgfast_decode_patches(
            &chunk, mean + i * leads, rstd + i * leads,
            static_cast<uint16_t*>(out) + i * leads * (timesteps / 250) * 256, 1, 1, &bad);
    });
  pool.RunAll();
}

}  // namespace ecgfast

namespace dali {  // the macros use names of DALI without their namespace

DALI_SCHEMA(EcgDecode)
    .DocStr("Decodes ecgpack chunks to int16, or to normalised patches of 250 timesteps.")
    .NumInput(3, 5)
    .NumOutput(2)
    .AddArg("num_leads", "Leads of a record.", ::DALI_INT64)
    .AddArg("num_timesteps", "Timesteps of a record.", ::DALI_INT64);

DALI_REGISTER_OPERATOR(EcgDecode, ecgfast::Decode<dali::CPUBackend>, CPU);

}  // namespace dali
