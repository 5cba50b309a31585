// SPDX-License-Identifier: Apache-2.0
// The two towers of a model, for inference.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>

#include "clip_config.h"
#include "clip_encoder.h"
#include "clip_resnet.h"
#include "clip_weights.h"

namespace reco {

/// What makes an embedding of a tower's token: a LayerNorm and a projection, where the model has them.
struct ClipHead {
  at::Tensor norm_weight, norm_bias;
  std::optional<at::Tensor> projection, projection_bias;
  double epsilon = 0;

  at::Tensor norm(const at::Tensor& x) const;     ///< over the last dimension, in float32
  at::Tensor project(const at::Tensor& x) const;  ///< [n, width] float32; returns unit rows on the CPU
};

/// SigLIP's pooling (Zhai et al., "Scaling Vision Transformers", 2022): a learned query attends to all tokens.
class ClipPooling {
 public:
  ClipPooling(const ClipVision& config, const ClipWeights& weights, const at::TensorOptions& options);
  /// x: [n * length, hidden_size]. Returns [n, hidden_size].
  at::Tensor operator()(const at::Tensor& x, std::int64_t n) const;

 private:
  std::int64_t heads_;
  at::Tensor query_;
  Linear kv_, out_;
  ClipMlp mlp_;
};

/// A Vision Transformer (Dosovitskiy et al., 2021).
class ClipVit {
 public:
  ClipVit(const ClipVision& config, const ClipWeights& weights, const at::TensorOptions& options);
  /// pixels: [n, 3, image_size, image_size]. Returns [n, projection_dim] unit rows, float32 on the CPU.
  at::Tensor operator()(const at::Tensor& pixels, ClipScratch& scratch) const;

 private:
  at::Tensor patches(const at::Tensor& pixels, ClipScratch& scratch) const;
  at::Tensor encode_part(const at::Tensor& pixels, ClipScratch& scratch) const;
  at::Tensor tokens(const at::Tensor& pixels, ClipScratch& scratch) const;
  at::Tensor mean(const at::Tensor& x, std::int64_t n) const;

  ClipVision config_;
  at::TensorOptions options_;
  ClipEncoder encoder_;
  ClipHead head_;
  std::optional<ClipPooling> pooling_;
  at::Tensor patch_weight_, class_token_, positions_, pre_norm_weight_, pre_norm_bias_;
};

/// Immutable; thread safe with one scratch a caller. Call under c10::InferenceMode.
class ClipModel {
 public:
  ClipModel(const ClipConfig& config, const ClipWeights& weights, at::Device device, at::ScalarType dtype);

  /// pixels: [n, 3, image_size, image_size] float32 on the CPU. Returns [n, projection_dim] unit rows, float32 on the
  /// CPU.
  at::Tensor encode_images(const at::Tensor& pixels, ClipScratch& scratch) const;

  /// ids: [n, length] int64 on the CPU, each in [0, vocab_size); positions: [n], the token that becomes the embedding.
  at::Tensor encode_texts(const at::Tensor& ids, const at::Tensor& positions, ClipScratch& scratch) const;

  float logit_scale() const { return logit_scale_; }
  float logit_bias() const { return logit_bias_; }

 private:
  ClipConfig config_;
  at::TensorOptions options_;
  std::optional<ClipVit> vit_;
  std::optional<ClipResnet> resnet_;
  ClipEncoder text_;
  ClipHead text_head_;
  at::Tensor token_embedding_, token_positions_;
  float logit_scale_ = 1.0F, logit_bias_ = 0.0F;
};

/// Rows of unit length.
at::Tensor normalize_rows(const at::Tensor& x);

}  // namespace reco
