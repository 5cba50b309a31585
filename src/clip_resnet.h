// SPDX-License-Identifier: Apache-2.0
// CLIP's ModifiedResNet (Radford et al., 2021, section 2.4): a ResNet-D stem of three convolutions, strides as average
// pools before convolutions (Zhang, 2019), attention over the positions instead of their mean.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "clip_config.h"
#include "clip_weights.h"

namespace reco {

class ClipResnet {
 public:
  ClipResnet(const ClipVision& config, const ClipWeights& weights, const at::TensorOptions& options);
  /// pixels: [n, 3, image_size, image_size]. Returns [n, projection_dim], not normalised.
  at::Tensor operator()(const at::Tensor& pixels) const;

 private:
  /// A convolution with the batch normalisation behind it in its weights.
  struct Convolution {
    at::Tensor weight, bias;
  };
  struct Block {
    Convolution first, second, third, shortcut;  // the shortcut of all but a stage's first block is the input itself
    std::int64_t stride = 1;
  };
  Convolution load(const ClipWeights& weights, const std::string& name, const std::string& norm) const;
  at::Tensor stem(const at::Tensor& pixels) const;
  at::Tensor residual(const Block& block, const at::Tensor& x) const;
  at::Tensor pool(const at::Tensor& x) const;

  at::TensorOptions options_;
  std::int64_t heads_;
  std::vector<Convolution> stem_;
  std::vector<Block> blocks_;
  at::Tensor positions_, query_weight_, query_bias_, kv_weight_, kv_bias_, out_weight_, out_bias_;
};

}  // namespace reco
