// SPDX-License-Identifier: Apache-2.0
// The transformer of a tower on LibTorch's tensors, for inference.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "clip_config.h"
#include "clip_weights.h"
#include "linear.h"

namespace reco {

/// The large intermediate results of a tower, kept from batch to batch: fresh memory costs a page fault every 4 KiB.
/// One caller uses it at a time.
class ClipScratch {
 public:
  enum Slot : std::size_t { kTokens, kPixels, kPatches };
  /// An uninitialised tensor in this place; what was there before is overwritten.
  at::Tensor take(Slot slot, at::IntArrayRef shape, const at::TensorOptions& options);

 private:
  std::array<at::Tensor, 3> places_;
};

/// One of the weights as float32 on the CPU.
at::Tensor load_tensor(const ClipWeights& weights, const std::string& name);

/// The same for whoever only computes from it, as long as `weights` live: the file's own bytes where they will do. A
/// copy of all of them costs as much as the first image.
at::Tensor view_tensor(const ClipWeights& weights, const std::string& name);

/// x + fc2(activation(fc1(LayerNorm(x)))), the second half of a transformer layer.
class ClipMlp {
 public:
  ClipMlp() = default;
  /// What the layer adds is multiplied by `factor`, [hidden_size] float32 on the CPU, if it is defined.
  ClipMlp(const ClipTower& config, const ClipWeights& weights, const std::string& norm, const std::string& mlp,
          const at::TensorOptions& options, const at::Tensor& factor = {});
  /// x: [n, hidden_size].
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  at::Tensor norm_weight_, norm_bias_;
  Linear fc1_, fc2_;
  Activation activation_{};
  double epsilon_ = 0;
};

/// A stack of pre-norm transformer layers.
class ClipEncoder {
 public:
  ClipEncoder() = default;
  ClipEncoder(const ClipTower& config, const std::string& model, const ClipWeights& weights,
              const at::TensorOptions& options);

  /// One token a sequence. x: [n * length, hidden_size]. positions: [n], the token of each sequence that is wanted.
  /// With `causal`, tokens see themselves and those before. Returns [n, hidden_size].
  at::Tensor pick(at::Tensor x, const at::Tensor& positions, bool causal) const;

  /// All tokens, without a mask. x: [n * length, hidden_size], as is the result.
  at::Tensor all(at::Tensor x, std::int64_t n) const;

 private:
  struct Layer {
    at::Tensor norm_weight, norm_bias;
    Linear q, kv, out;
    ClipMlp mlp;
  };
  Layer load_layer(const std::string& prefix, const ClipWeights& weights, const at::TensorOptions& options) const;
  at::Tensor attend(const Layer& layer, const at::Tensor& x, std::int64_t n, bool causal) const;
  at::Tensor attend_at(const Layer& layer, const at::Tensor& x, const at::Tensor& positions, bool causal) const;

  ClipTower config_;
  std::vector<Layer> layers_;
};

/// [n * length, width] as [n, heads, length, width / heads].
at::Tensor split_heads(const at::Tensor& x, std::int64_t n, std::int64_t heads);

}  // namespace reco
