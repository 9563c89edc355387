// DALI operator ecg_decode: one ecgpack chunk per sample -> normalised fp16 patches, or int16.
#pragma once

#include <cstdint>
#include <vector>

#include "dali/pipeline/operator/checkpointing/stateless_operator.h"

namespace ecgfast {

// Inputs: chunk (bytes,) uint8; for patches also mean (C,) and rstd (C,) float32. Outputs: a
// sample's (C * T / 250, 256) float16, or (C, T) int16 when there is only one input; and its
// status, 0 or a code of docs/format.md, 2.4. On a GPU nobody waits for the status here, so it is
// an output.
template <class Backend>
class Decode : public dali::StatelessOperator<Backend> {
 public:
  explicit Decode(const dali::OpSpec& spec)
      : dali::StatelessOperator<Backend>(spec),
        num_leads_(spec.GetArgument<int>("num_leads")),
        num_timesteps_(spec.GetArgument<int>("num_timesteps")) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>& output, const dali::Workspace& workspace) override {
    const int64_t leads = num_leads_, timesteps = num_timesteps_;
    const dali::TensorShape<> patches{leads * (timesteps / 250), 256}, signal{leads, timesteps};
    const int samples = workspace.GetInputBatchSize(0);
    const bool normalises = workspace.NumInput() == 3;
    DALI_ENFORCE(workspace.GetInputDataType(0) == ::DALI_UINT8, "ecg_decode: chunks must be uint8");
    for (int i = 1; i < workspace.NumInput(); ++i) {
      const bool fits = workspace.GetInputShape(i) ==
                        dali::uniform_list_shape(samples, dali::TensorShape<>{leads});
      DALI_ENFORCE(normalises && fits && workspace.GetInputDataType(i) == ::DALI_FLOAT,
                   "ecg_decode: mean and rstd must both be given, one float per lead");
    }
    output.resize(2);
    output[0].type = normalises ? ::DALI_FLOAT16 : ::DALI_INT16;
    output[0].shape = dali::uniform_list_shape(samples, normalises ? patches : signal);
    output[1].type = ::DALI_INT32;
    output[1].shape = dali::uniform_list_shape(samples, dali::TensorShape<>{});
    return true;
  }

  void RunImpl(dali::Workspace& workspace) override;

 private:
  int num_leads_, num_timesteps_;
};

}  // namespace ecgfast
