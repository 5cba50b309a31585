// SPDX-License-Identifier: Apache-2.0
// The two towers of a CLIP model on LibTorch's tensors, for inference.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "clip_config.h"
#include "clip_weights.h"

namespace reco {

/// The large intermediate results of a tower, kept from batch to batch: fresh memory costs a page fault every 4 KiB.
/// One caller uses it at a time.
class ClipScratch {
 public:
  /// An uninitialised tensor in the place numbered `slot`; what was there before is overwritten.
  at::Tensor take(std::size_t slot, at::IntArrayRef shape, const at::TensorOptions& options);

 private:
  std::array<at::Tensor, 4> places_;
};

/// A stack of pre-norm transformer layers that gives one token a sequence.
class ClipEncoder {
 public:
  ClipEncoder(const ClipTower& config, const std::string& model, const ClipWeights& weights,
              const at::TensorOptions& options);

  /// x: [n * length, hidden_size], overwritten. positions: [n], the token of each sequence that is wanted. With
  /// `causal`, tokens see themselves and those before. Returns [n, hidden_size].
  at::Tensor operator()(at::Tensor x, const at::Tensor& positions, bool causal, ClipScratch& scratch) const;

 private:
  struct Layer {
    at::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;
    at::Tensor qkv_weight, qkv_bias, out_weight, out_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
  };
  void attend(const Layer& layer, at::Tensor& x, std::int64_t n, bool causal, ClipScratch& scratch) const;
  at::Tensor attend_at(const Layer& layer, const at::Tensor& x, const at::Tensor& positions, bool causal,
                       ClipScratch& scratch) const;
  void feed_forward(const Layer& layer, at::Tensor& x, ClipScratch& scratch) const;
  at::Tensor heads(const at::Tensor& x, std::int64_t n) const;

  ClipTower config_;
  Activation activation_;
  std::vector<Layer> layers_;
};

/// Immutable; thread safe with one scratch a caller. Call under c10::InferenceMode.
class ClipModel {
 public:
  ClipModel(const ClipConfig& config, const ClipWeights& weights, at::Device device, at::ScalarType dtype);

  /// pixels: [n, 3, image_size, image_size] float32 on the CPU. Returns [n, projection_dim] unit rows, float32 on the
  /// CPU.
  at::Tensor encode_images(const at::Tensor& pixels, ClipScratch& scratch) const;

  /// ids: [n, length] int64 on the CPU, each in [0, vocab_size); positions: [n], where each text ends.
  at::Tensor encode_texts(const at::Tensor& ids, const at::Tensor& positions, ClipScratch& scratch) const;

  float logit_scale() const { return logit_scale_; }

 private:
  /// What makes an embedding of a tower's token.
  struct Head {
    at::Tensor norm_weight, norm_bias, projection;
    double epsilon;
    at::Tensor operator()(const at::Tensor& x) const;
  };
  at::Tensor patches(const at::Tensor& pixels, ClipScratch& scratch) const;

  ClipConfig config_;
  at::TensorOptions options_;
  ClipEncoder vision_, text_;
  Head vision_head_, text_head_;
  at::Tensor patch_weight_, class_token_, patch_positions_, pre_norm_weight_, pre_norm_bias_;
  at::Tensor token_embedding_, token_positions_;
  float logit_scale_ = 1.0F;
};

}  // namespace reco
