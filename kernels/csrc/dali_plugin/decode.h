// DALI operator ecg_decode: a batch of ecgpack chunks -> normalised fp16 patches, or int16.
#pragma once

#include <cstdint>
#include <vector>

#include "dali/pipeline/operator/checkpointing/stateless_operator.h"

namespace ecgfast {

// All records of a batch are one sample of DALI's: one copy to the GPU, one kernel, and no Python
// or DALI bookkeeping per record. Inputs: chunks one after another (bytes,) uint8; offsets and
// lengths (B,) int64; for patches also mean and rstd (B, C) float32. Outputs: (B, C * T / 250, 256)
// float16, or (B, C, T) int16 when there are only three inputs; and (B,) int32 status, 0 or a code
// of docs/format.md, 2.4. Reading the status on a GPU would wait for the kernel, so it is an output.
template <class Backend>
class Decode : public dali::StatelessOperator<Backend> {
 public:
  explicit Decode(const dali::OpSpec& spec)
      : dali::StatelessOperator<Backend>(spec),
        num_leads_(spec.GetArgument<int>("num_leads")),
        num_timesteps_(spec.GetArgument<int>("num_timesteps")) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>& output, const dali::Workspace& workspace) override {
    DALI_ENFORCE(workspace.NumInput() != 4, "ecg_decode: mean and rstd must both be given");
    DALI_ENFORCE(workspace.GetInputBatchSize(0) == 1,
                 "ecg_decode: all records are one sample, so the pipeline's batch_size must be 1");
    const int64_t leads = num_leads_, timesteps = num_timesteps_;
    const int64_t records = workspace.GetInputShape(1)[0].num_elements();
    expect(workspace, 0, ::DALI_UINT8, {workspace.GetInputShape(0)[0].num_elements()});
    for (int i : {1, 2}) expect(workspace, i, ::DALI_INT64, {records});
    for (int i = 3; i < workspace.NumInput(); ++i)
      expect(workspace, i, ::DALI_FLOAT, {records, leads});

    output.resize(2);
    if (normalises(workspace))
      output[0] = {{one({records, leads * (timesteps / 250), 256})}, ::DALI_FLOAT16};
    else
      output[0] = {{one({records, leads, timesteps})}, ::DALI_INT16};
    output[1] = {{one({records})}, ::DALI_INT32};
    return true;
  }

  void RunImpl(dali::Workspace& workspace) override;

 private:
  static bool normalises(const dali::Workspace& workspace) { return workspace.NumInput() == 5; }

  static dali::TensorListShape<> one(dali::TensorShape<> shape) {
    return dali::uniform_list_shape(1, shape);
  }

  static void expect(const dali::Workspace& workspace, int input, dali::DALIDataType type,
                     dali::TensorShape<> shape) {
    DALI_ENFORCE(workspace.GetInputDataType(input) == type &&
                     workspace.GetInputShape(input)[0] == shape,
                 dali::make_string("ecg_decode: input ", input, " must be ", type, " ", shape,
                                   ", got ", workspace.GetInputDataType(input), " ",
                                   workspace.GetInputShape(input)[0]));
  }

  // Element 0 of an input's only sample.
  template <class T>
  static const T* data(const dali::Workspace& workspace, int input) {
    return workspace.Input<Backend>(input).template tensor<T>(0);
  }

  int num_leads_, num_timesteps_;
};

}  // namespace ecgfast
