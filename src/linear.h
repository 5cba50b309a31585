// SPDX-License-Identifier: Apache-2.0
// A linear layer for inference. On CPUs its weights are packed once for oneDNN, and what follows the product is done in
// the same pass.
#pragma once

#include <ATen/ATen.h>

#include "clip_config.h"

namespace reco {

/// x W^T + b. Immutable, thread safe. Call under c10::InferenceMode.
class Linear {
 public:
  Linear() = default;
  /// weight: [out, in], bias: [out], both float32 on the CPU; copied to these options' dtype and device.
  Linear(const at::Tensor& weight, const at::Tensor& bias, const at::TensorOptions& options);

  /// x: [n, in] of the options' dtype and device. Returns [n, out].
  at::Tensor operator()(const at::Tensor& x) const;
  /// The activation of it; `quick_gelu` is taken as `silu`: see ClipEncoder.
  at::Tensor activated(const at::Tensor& x, Activation activation) const;
  /// base + it, base: [n, out].
  at::Tensor plus(const at::Tensor& base, const at::Tensor& x) const;

 private:
  at::Tensor weight_, bias_;
};

}  // namespace reco
