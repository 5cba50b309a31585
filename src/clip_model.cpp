// SPDX-License-Identifier: Apache-2.0
#include "clip_model.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace reco {

namespace {

enum Slot : std::size_t { kTokens, kWide, kPixels, kPatches };

constexpr double kQuickGelu = 1.702;

/// One of the weights as float32 on the CPU.
at::Tensor load(const ClipWeights& weights, const std::string& name) {
  const io::TensorView& view = weights.at(name);
  const at::Tensor tensor = at::empty(view.shape, at::kFloat);
  io::to_float32(view, {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())}, name);
  return tensor;
}

at::Tensor normalize_rows(const at::Tensor& x) { return x / x.norm(2, {1}, true).clamp_min(1e-12); }

}  // namespace

at::Tensor ClipScratch::take(std::size_t slot, at::IntArrayRef shape, const at::TensorOptions& options) {
  const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  at::Tensor& place = places_.at(slot);
  if (!place.defined() || place.numel() < count) place = at::empty({count}, options);
  return place.narrow(0, 0, count).view(shape);
}

// Weights of matrix products are kept as they are stored, [out, in], and seen as [in, out]: the products take them
// either way, so nothing is transposed. The three projections of attention are one product. quick_gelu(x) = x
// sigmoid(1.702 x) is silu(1.702 x) / 1.702: with the factor in the weights around it, the activation is one pass
// instead of three.
ClipEncoder::ClipEncoder(const ClipTower& config, const std::string& model, const ClipWeights& weights,
                         const at::TensorOptions& options)
    : config_(config), activation_(config.activation()) {
  const double factor = activation_ == Activation::quick_gelu ? kQuickGelu : 1.0;
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string prefix = model + ".encoder.layers." + std::to_string(i) + '.';
    const auto get = [&](const std::string& name) { return load(weights, prefix + name); };
    const auto keep = [&](const at::Tensor& tensor) { return tensor.to(options); };
    const auto three = [&](const std::string& kind) {
      return at::cat(
          {get("self_attn.q_proj." + kind), get("self_attn.k_proj." + kind), get("self_attn.v_proj." + kind)});
    };
    Layer& layer = layers_.emplace_back();
    layer.norm1_weight = keep(get("layer_norm1.weight")), layer.norm1_bias = keep(get("layer_norm1.bias"));
    layer.norm2_weight = keep(get("layer_norm2.weight")), layer.norm2_bias = keep(get("layer_norm2.bias"));
    layer.qkv_weight = keep(three("weight")).t(), layer.qkv_bias = keep(three("bias"));
    layer.out_weight = keep(get("self_attn.out_proj.weight")).t();
    layer.out_bias = keep(get("self_attn.out_proj.bias"));
    layer.fc1_weight = keep(get("mlp.fc1.weight").mul_(factor)).t();
    layer.fc1_bias = keep(get("mlp.fc1.bias").mul_(factor));
    layer.fc2_weight = keep(get("mlp.fc2.weight").div_(factor)).t(), layer.fc2_bias = keep(get("mlp.fc2.bias"));
  }
}

at::Tensor ClipEncoder::operator()(at::Tensor x, const at::Tensor& positions, bool causal, ClipScratch& scratch) const {
  for (std::size_t i = 0; i + 1 < layers_.size(); ++i) {
    attend(layers_[i], x, positions.size(0), causal, scratch);
    feed_forward(layers_[i], x, scratch);
  }
  // One token of the last layer is wanted; the others only serve as its keys and values.
  at::Tensor last = attend_at(layers_.back(), x, positions, causal, scratch);
  feed_forward(layers_.back(), last, scratch);
  return last;
}

/// [n * length, hidden_size] as [n, heads, length, size of a head].
at::Tensor ClipEncoder::heads(const at::Tensor& x, std::int64_t n) const {
  const std::int64_t count = config_.num_attention_heads;
  return x.view({n, x.size(0) / n, count, config_.hidden_size / count}).transpose(1, 2);
}

void ClipEncoder::attend(const Layer& layer, at::Tensor& x, std::int64_t n, bool causal, ClipScratch& scratch) const {
  const std::int64_t width = config_.hidden_size;
  const at::Tensor in = at::layer_norm(x, {width}, layer.norm1_weight, layer.norm1_bias, config_.layer_norm_eps);
  at::Tensor qkv = scratch.take(kWide, {x.size(0), 3 * width}, x.options());
  at::addmm_out(qkv, layer.qkv_bias, in, layer.qkv_weight);
  const auto part = [&](std::int64_t i) { return heads(qkv.narrow(1, i * width, width), n); };
  const at::Tensor out = at::scaled_dot_product_attention(part(0), part(1), part(2), {}, 0.0, causal);
  x.addmm_(out.transpose(1, 2).reshape({x.size(0), width}), layer.out_weight).add_(layer.out_bias);
}

at::Tensor ClipEncoder::attend_at(const Layer& layer, const at::Tensor& x, const at::Tensor& positions, bool causal,
                                  ClipScratch& scratch) const {
  const std::int64_t width = config_.hidden_size, n = positions.size(0), length = x.size(0) / n;
  const at::Tensor in = at::layer_norm(x, {width}, layer.norm1_weight, layer.norm1_bias, config_.layer_norm_eps);
  at::Tensor kv = scratch.take(kWide, {x.size(0), 2 * width}, x.options());
  at::addmm_out(kv, layer.qkv_bias.narrow(0, width, 2 * width), in, layer.qkv_weight.narrow(1, width, 2 * width));

  const at::Tensor steps = at::arange(length, positions.options());
  const at::Tensor rows = at::arange(n, positions.options()) * length + positions;
  const at::Tensor q =
      at::addmm(layer.qkv_bias.narrow(0, 0, width), in.index_select(0, rows), layer.qkv_weight.narrow(1, 0, width));
  std::optional<at::Tensor> mask;
  if (causal) mask = steps.unsqueeze(0).le(positions.unsqueeze(1)).view({n, 1, 1, length});
  const at::Tensor out = at::scaled_dot_product_attention(heads(q, n), heads(kv.narrow(1, 0, width), n),
                                                          heads(kv.narrow(1, width, width), n), mask);
  return x.index_select(0, rows).addmm_(out.transpose(1, 2).reshape({n, width}), layer.out_weight).add_(layer.out_bias);
}

void ClipEncoder::feed_forward(const Layer& layer, at::Tensor& x, ClipScratch& scratch) const {
  const std::int64_t width = config_.hidden_size;
  const at::Tensor in = at::layer_norm(x, {width}, layer.norm2_weight, layer.norm2_bias, config_.layer_norm_eps);
  at::Tensor hidden = scratch.take(kWide, {x.size(0), config_.intermediate_size}, x.options());
  at::addmm_out(hidden, layer.fc1_bias, in, layer.fc1_weight);
  switch (activation_) {
    case Activation::quick_gelu:
    case Activation::silu:
      at::silu_(hidden);
      break;
    case Activation::gelu:
      at::gelu_(hidden, "none");
      break;
    case Activation::gelu_tanh:
      at::gelu_(hidden, "tanh");
      break;
    case Activation::relu:
      at::relu_(hidden);
      break;
  }
  x.addmm_(hidden, layer.fc2_weight).add_(layer.fc2_bias);
}

ClipModel::ClipModel(const ClipConfig& config, const ClipWeights& weights, at::Device device, at::ScalarType dtype)
    : config_(config),
      options_(at::TensorOptions().device(device).dtype(dtype)),
      vision_(config.vision, "vision_model", weights, options_),
      text_(config.text, "text_model", weights, options_) {
  const auto get = [&](const std::string& name) { return load(weights, name); };
  const auto keep = [&](const at::Tensor& tensor) { return tensor.to(options_); };
  const auto head = [&](const std::string& norm, const std::string& projection, double epsilon) {
    return Head{get(norm + ".weight").to(device), get(norm + ".bias").to(device), get(projection).to(device).t(),
                epsilon};
  };
  vision_head_ = head("vision_model.post_layernorm", "visual_projection.weight", config.vision.layer_norm_eps);
  text_head_ = head("text_model.final_layer_norm", "text_projection.weight", config.text.layer_norm_eps);

  const at::Tensor positions = get("vision_model.embeddings.position_embedding.weight");
  class_token_ = keep(get("vision_model.embeddings.class_embedding") + positions[0]);
  patch_positions_ = keep(positions.narrow(0, 1, positions.size(0) - 1));
  patch_weight_ = keep(get("vision_model.embeddings.patch_embedding.weight")).flatten(1).t();
  pre_norm_weight_ = keep(get("vision_model.pre_layrnorm.weight"));
  pre_norm_bias_ = keep(get("vision_model.pre_layrnorm.bias"));
  token_embedding_ = keep(get("text_model.embeddings.token_embedding.weight"));
  token_positions_ = keep(get("text_model.embeddings.position_embedding.weight"));
  logit_scale_ = std::exp(get("logit_scale").item<float>());
}

// In float32 whatever the towers use: it costs nothing here.
at::Tensor ClipModel::Head::operator()(const at::Tensor& x) const {
  const at::Tensor token = at::layer_norm(x.to(at::kFloat), {x.size(1)}, norm_weight, norm_bias, epsilon);
  return normalize_rows(at::mm(token, projection)).to(at::kCPU);
}

/// Cuts the images into patches and multiplies: the convolution of the patch embedding as one matrix product.
at::Tensor ClipModel::patches(const at::Tensor& pixels, ClipScratch& scratch) const {
  const std::int64_t n = pixels.size(0), grid = config_.vision.grid(), side = config_.vision.patch_size;
  const std::int64_t used = grid * side, channels = config_.vision.num_channels;
  const at::Tensor source = pixels.to(options_.device()).narrow(2, 0, used).narrow(3, 0, used);
  at::Tensor cut = scratch.take(kPixels, {n, grid, grid, channels, side, side}, options_);
  cut.copy_(source.unflatten(3, {grid, side}).unflatten(2, {grid, side}).permute({0, 2, 4, 1, 3, 5}));
  at::Tensor out = scratch.take(kPatches, {n * grid * grid, config_.vision.hidden_size}, options_);
  at::mm_out(out, cut.view({n * grid * grid, channels * side * side}), patch_weight_);
  return out.view({n, grid * grid, config_.vision.hidden_size});
}

at::Tensor ClipModel::encode_images(const at::Tensor& pixels, ClipScratch& scratch) const {
  const std::int64_t n = pixels.size(0), width = config_.vision.hidden_size, length = patch_positions_.size(0) + 1;
  at::Tensor tokens = scratch.take(kTokens, {n, length, width}, options_);
  tokens.select(1, 0).copy_(class_token_.expand({n, width}));
  at::Tensor rest = tokens.narrow(1, 1, length - 1);
  at::add_out(rest, patches(pixels, scratch), patch_positions_);
  const at::Tensor x = at::layer_norm(tokens.view({n * length, width}), {width}, pre_norm_weight_, pre_norm_bias_,
                                      config_.vision.layer_norm_eps);
  const at::Tensor first = at::zeros({n}, at::TensorOptions().device(options_.device()).dtype(at::kLong));
  return vision_head_(vision_(x, first, false, scratch));
}

at::Tensor ClipModel::encode_texts(const at::Tensor& ids, const at::Tensor& positions, ClipScratch& scratch) const {
  const std::int64_t n = ids.size(0), length = ids.size(1), width = config_.text.hidden_size;
  at::Tensor tokens = scratch.take(kTokens, {n * length, width}, options_);
  at::index_select_out(tokens, token_embedding_, 0, ids.to(options_.device()).flatten());
  tokens.view({n, length, width}).add_(token_positions_.narrow(0, 0, length));
  return text_head_(text_(tokens, positions.to(options_.device()), true, scratch));
}

}  // namespace reco
