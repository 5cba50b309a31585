// SPDX-License-Identifier: Apache-2.0
#include "clip_model.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "reco/threads.h"

namespace reco {

namespace {

ClipHead load_head(const ClipWeights& weights, const std::string& norm, const std::string& projection, bool bias,
                   double epsilon, at::Device device) {
  const auto get = [&](const std::string& name) { return load_tensor(weights, name).to(device); };
  ClipHead head{get(norm + ".weight"), get(norm + ".bias"), {}, {}, epsilon};
  if (!projection.empty()) head.projection = get(projection + ".weight").t();
  if (bias) head.projection_bias = get(projection + ".bias");
  return head;
}

}  // namespace

at::Tensor normalize_rows(const at::Tensor& x) { return x / x.norm(2, {1}, true).clamp_min(1e-12); }

// In float32 whatever the towers use: it costs nothing here.
at::Tensor ClipHead::norm(const at::Tensor& x) const {
  return at::layer_norm(x.to(at::kFloat), {x.size(-1)}, norm_weight, norm_bias, epsilon);
}

at::Tensor ClipHead::project(const at::Tensor& x) const {
  at::Tensor out = projection ? at::mm(x, *projection) : x;
  if (projection_bias) out = out + *projection_bias;
  return normalize_rows(out).to(at::kCPU);
}

// ---- pooling by attention

ClipPooling::ClipPooling(const ClipVision& config, const ClipWeights& weights, const at::TensorOptions& options)
    : heads_(config.num_attention_heads),
      mlp_(config, weights, "vision_model.head.layernorm", "vision_model.head.mlp", options) {
  const std::string name = "vision_model.head.";
  const auto get = [&](const std::string& part) { return load_tensor(weights, name + part); };
  const std::int64_t width = config.hidden_size;
  const at::Tensor weight = get("attention.in_proj_weight"), bias = get("attention.in_proj_bias");
  query_ = at::addmm(bias.narrow(0, 0, width), get("probe").view({1, width}), weight.narrow(0, 0, width).t());
  query_ = query_.to(options).view({1, heads_, 1, width / heads_});
  kv_ = Linear(weight.narrow(0, width, 2 * width), bias.narrow(0, width, 2 * width), options);
  out_ = Linear(get("attention.out_proj.weight"), get("attention.out_proj.bias"), options);
}

at::Tensor ClipPooling::operator()(const at::Tensor& x, std::int64_t n) const {
  const std::int64_t width = x.size(1);
  const at::Tensor kv = kv_(x);
  const auto part = [&](std::int64_t i) { return split_heads(kv.narrow(1, i * width, width), n, heads_); };
  const at::Tensor query = query_.expand({n, heads_, 1, width / heads_});
  const at::Tensor seen = at::scaled_dot_product_attention(query, part(0), part(1));
  return mlp_(out_(seen.reshape({n, width})));
}

// ---- images

ClipVit::ClipVit(const ClipVision& config, const ClipWeights& weights, const at::TensorOptions& options)
    : config_(config), options_(options), encoder_(config, "vision_model", weights, options) {
  const auto get = [&](const std::string& name) { return load_tensor(weights, name); };
  const std::string embeddings = "vision_model.embeddings.";
  head_ = load_head(weights, "vision_model.post_layernorm", config.projection ? "visual_projection" : "", false,
                    config.layer_norm_eps, options.device());
  if (config.pooling == ImagePooling::attention) pooling_.emplace(config, weights, options);
  at::Tensor positions = get(embeddings + "position_embedding.weight");
  if (config.class_token) {
    class_token_ = (get(embeddings + "class_embedding") + positions[0]).to(options);
    positions = positions.narrow(0, 1, positions.size(0) - 1);
  }
  if (config.patch_bias) positions = positions + get(embeddings + "patch_embedding.bias");
  positions_ = positions.to(options);
  patch_weight_ = get(embeddings + "patch_embedding.weight").to(options).flatten(1).t();
  if (!config.pre_norm) return;
  pre_norm_weight_ = get("vision_model.pre_layrnorm.weight").to(options);
  pre_norm_bias_ = get("vision_model.pre_layrnorm.bias").to(options);
}

/// Cuts the images into patches and multiplies: the convolution of the patch embedding as one matrix product.
at::Tensor ClipVit::patches(const at::Tensor& pixels, ClipScratch& scratch) const {
  const std::int64_t n = pixels.size(0), grid = config_.grid(), side = config_.patch_size;
  const std::int64_t used = grid * side, channels = config_.num_channels;
  const at::Tensor source = pixels.to(options_.device()).narrow(2, 0, used).narrow(3, 0, used);
  at::Tensor cut = scratch.take(ClipScratch::kPixels, {n, grid, grid, channels, side, side}, options_);
  cut.copy_(source.unflatten(3, {grid, side}).unflatten(2, {grid, side}).permute({0, 2, 4, 1, 3, 5}));
  at::Tensor out = scratch.take(ClipScratch::kPatches, {n * grid * grid, config_.hidden_size}, options_);
  at::mm_out(out, cut.view({n * grid * grid, channels * side * side}), patch_weight_);
  return out.view({n, grid * grid, config_.hidden_size});
}

/// What goes into the first layer, [n * length, hidden_size].
at::Tensor ClipVit::tokens(const at::Tensor& pixels, ClipScratch& scratch) const {
  const std::int64_t n = pixels.size(0), width = config_.hidden_size, patches_each = positions_.size(0);
  const std::int64_t length = patches_each + (config_.class_token ? 1 : 0);
  at::Tensor tokens = scratch.take(ClipScratch::kTokens, {n, length, width}, options_);
  if (config_.class_token) tokens.select(1, 0).copy_(class_token_.expand({n, width}));
  at::Tensor rest = tokens.narrow(1, length - patches_each, patches_each);
  at::add_out(rest, patches(pixels, scratch), positions_);
  const at::Tensor rows = tokens.view({n * length, width});
  if (!config_.pre_norm) return rows;
  return at::layer_norm(rows, {width}, pre_norm_weight_, pre_norm_bias_, config_.layer_norm_eps);
}

/// The mean of each image's patches, normalised after or before, [n, hidden_size].
at::Tensor ClipVit::mean(const at::Tensor& x, std::int64_t n) const {
  const at::Tensor patches = x.view({n, -1, x.size(1)}).narrow(1, config_.class_token ? 1 : 0, positions_.size(0));
  return config_.norm_after_pooling ? head_.norm(patches.to(at::kFloat).mean(1)) : head_.norm(patches).mean(1);
}

at::Tensor ClipVit::encode_part(const at::Tensor& pixels, ClipScratch& scratch) const {
  const std::int64_t n = pixels.size(0);
  at::Tensor x = tokens(pixels, scratch);
  if (config_.pooling == ImagePooling::class_token) {
    const at::Tensor first = at::zeros({n}, at::TensorOptions().device(options_.device()).dtype(at::kLong));
    return head_.project(head_.norm(encoder_.pick(x, first, false)));
  }
  x = encoder_.all(x, n);
  if (config_.pooling == ImagePooling::mean) return head_.project(mean(x, n));
  return head_.project((*pooling_)(head_.norm(x).to(options_), n).to(at::kFloat));
}

// On CPUs in parts of some thousand tokens: what a layer hands to the next stays in the cache, and below 32 MiB the
// allocator gives the same pages again instead of fresh ones.
at::Tensor ClipVit::operator()(const at::Tensor& pixels, ClipScratch& scratch) const {
  const std::int64_t n = pixels.size(0), tokens = n * (positions_.size(0) + 1);
  const std::int64_t most = std::max<std::int64_t>(2048, 1024 * threads());
  const std::int64_t parts = options_.device().is_cpu() ? std::min(n, (tokens + most - 1) / most) : 1;
  std::vector<at::Tensor> rows;
  for (const at::Tensor& part : pixels.tensor_split(parts)) rows.push_back(encode_part(part, scratch));
  return at::cat(rows);
}

// ---- both

ClipModel::ClipModel(const ClipConfig& config, const ClipWeights& weights, at::Device device, at::ScalarType dtype)
    : config_(config),
      options_(at::TensorOptions().device(device).dtype(dtype)),
      text_(config.text, "text_model", weights, options_) {
  if (config.vision.is_resnet()) {
    resnet_.emplace(config.vision, weights, options_);
  } else {
    vit_.emplace(config.vision, weights, options_);
  }
  const bool siglip = config.architecture == "siglip";
  text_head_ = load_head(weights, "text_model.final_layer_norm", siglip ? "text_model.head" : "text_projection",
                         config.text.projection_bias, config.text.layer_norm_eps, device);
  token_embedding_ = load_tensor(weights, "text_model.embeddings.token_embedding.weight").to(options_);
  token_positions_ = load_tensor(weights, "text_model.embeddings.position_embedding.weight").to(options_);
  logit_scale_ = std::exp(load_tensor(weights, "logit_scale").item<float>());
  if (config.logit_bias) logit_bias_ = load_tensor(weights, "logit_bias").item<float>();
}

at::Tensor ClipModel::encode_images(const at::Tensor& pixels, ClipScratch& scratch) const {
  return vit_ ? (*vit_)(pixels, scratch) : normalize_rows((*resnet_)(pixels).to(at::kFloat)).to(at::kCPU);
}

at::Tensor ClipModel::encode_texts(const at::Tensor& ids, const at::Tensor& positions, ClipScratch& scratch) const {
  const std::int64_t n = ids.size(0), length = ids.size(1), width = config_.text.hidden_size;
  at::Tensor tokens = scratch.take(ClipScratch::kTokens, {n * length, width}, options_);
  at::index_select_out(tokens, token_embedding_, 0, ids.to(options_.device()).flatten());
  tokens.view({n, length, width}).add_(token_positions_.narrow(0, 0, length));
  const at::Tensor last = text_.pick(tokens, positions.to(options_.device()), config_.text.causal);
  return text_head_.project(text_head_.norm(last));
}

}  // namespace reco
