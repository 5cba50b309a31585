// SPDX-License-Identifier: Apache-2.0
#include "clip_encoder.h"

#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>

#include "reco/interrupt.h"

namespace reco {

namespace {

constexpr double kQuickGelu = 1.702;

at::Tensor scaled(const at::Tensor& x, double factor) { return factor == 1.0 ? x : x * factor; }

}  // namespace

at::Tensor ClipScratch::take(Slot slot, at::IntArrayRef shape, const at::TensorOptions& options) {
  const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  at::Tensor& place = places_.at(slot);
  if (!place.defined() || place.numel() < count) place = at::empty({count}, options);
  return place.narrow(0, 0, count).view(shape);
}

at::Tensor load_tensor(const ClipWeights& weights, const std::string& name) {
  const io::TensorView& view = weights.at(name);
  const at::Tensor tensor = at::empty(view.shape, at::kFloat);
  io::to_float32(view, {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())}, name);
  return tensor;
}

at::Tensor view_tensor(const ClipWeights& weights, const std::string& name) {
  const io::TensorView& view = weights.at(name);
  const bool aligned = reinterpret_cast<std::uintptr_t>(view.data.data()) % alignof(float) == 0;
  if (view.dtype != "F32" || !aligned) return load_tensor(weights, name);
  return at::from_blob(const_cast<std::byte*>(view.data.data()), view.shape, at::kFloat);
}

at::Tensor split_heads(const at::Tensor& x, std::int64_t n, std::int64_t heads) {
  return x.view({n, x.size(0) / n, heads, x.size(1) / heads}).transpose(1, 2);
}

// quick_gelu(x) = x sigmoid(1.702 x) is silu(1.702 x) / 1.702: with the factor in the weights around it, the activation
// is the cheaper one. A factor on what a product gives is one on the rows of its weights.
ClipMlp::ClipMlp(const ClipTower& config, const ClipWeights& weights, const std::string& norm, const std::string& mlp,
                 const at::TensorOptions& options, const at::Tensor& factor)
    : activation_(config.activation()), epsilon_(config.layer_norm_eps) {
  const auto get = [&](const std::string& name) { return view_tensor(weights, name); };
  const double quick = activation_ == Activation::quick_gelu ? kQuickGelu : 1.0;
  norm_weight_ = load_tensor(weights, norm + ".weight").to(options);
  norm_bias_ = load_tensor(weights, norm + ".bias").to(options);
  fc1_ = Linear(scaled(get(mlp + ".fc1.weight"), quick), scaled(get(mlp + ".fc1.bias"), quick), options);
  at::Tensor weight = get(mlp + ".fc2.weight"), bias = get(mlp + ".fc2.bias");
  if (quick != 1.0) weight = weight / quick;
  if (factor.defined()) weight = weight * factor.unsqueeze(1), bias = bias * factor;
  fc2_ = Linear(weight, bias, options);
}

at::Tensor ClipMlp::operator()(const at::Tensor& x) const {
  const at::Tensor in = at::layer_norm(x, {x.size(1)}, norm_weight_, norm_bias_, epsilon_);
  return fc2_.plus(x, fc1_.activated(in, activation_));
}

ClipEncoder::ClipEncoder(const ClipTower& config, const std::string& model, const ClipWeights& weights,
                         const at::TensorOptions& options)
    : config_(config) {
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    layers_.push_back(load_layer(model + ".encoder.layers." + std::to_string(i) + '.', weights, options));
  }
}

// Keys and values are one product; queries are another, as the last layer wants few of them.
ClipEncoder::Layer ClipEncoder::load_layer(const std::string& prefix, const ClipWeights& weights,
                                           const at::TensorOptions& options) const {
  const auto get = [&](const std::string& name) { return view_tensor(weights, prefix + name); };
  const auto own = [&](const std::string& name) { return load_tensor(weights, prefix + name).to(options); };
  const auto both = [&](const std::string& kind) {
    return at::cat({get("self_attn.k_proj." + kind), get("self_attn.v_proj." + kind)});
  };
  Layer layer;
  layer.norm_weight = own("layer_norm1.weight"), layer.norm_bias = own("layer_norm1.bias");
  layer.q = Linear(get("self_attn.q_proj.weight"), get("self_attn.q_proj.bias"), options);
  layer.kv = Linear(both("weight"), both("bias"), options);
  at::Tensor out = get("self_attn.out_proj.weight"), bias = get("self_attn.out_proj.bias"), factor;
  if (config_.layer_scale) {
    const at::Tensor first = get("layer_scale1");
    out = out * first.unsqueeze(1), bias = bias * first;
    factor = get("layer_scale2");
  }
  layer.out = Linear(out, bias, options);
  layer.mlp = ClipMlp(config_, weights, prefix + "layer_norm2", prefix + "mlp", options, factor);
  return layer;
}

at::Tensor ClipEncoder::pick(at::Tensor x, const at::Tensor& positions, bool causal) const {
  for (std::size_t i = 0; i + 1 < layers_.size(); ++i) {
    check_interrupt();
    x = layers_[i].mlp(attend(layers_[i], x, positions.size(0), causal));
  }
  // One token of the last layer is wanted; the others only serve as its keys and values.
  return layers_.back().mlp(attend_at(layers_.back(), x, positions, causal));
}

at::Tensor ClipEncoder::all(at::Tensor x, std::int64_t n) const {
  for (const Layer& layer : layers_) {
    check_interrupt();
    x = layer.mlp(attend(layer, x, n, false));
  }
  return x;
}

at::Tensor ClipEncoder::attend(const Layer& layer, const at::Tensor& x, std::int64_t n, bool causal) const {
  const std::int64_t width = config_.hidden_size, heads = config_.num_attention_heads;
  const at::Tensor in = at::layer_norm(x, {width}, layer.norm_weight, layer.norm_bias, config_.layer_norm_eps);
  const at::Tensor q = layer.q(in), kv = layer.kv(in);
  const auto part = [&](std::int64_t i) { return split_heads(kv.narrow(1, i * width, width), n, heads); };
  const at::Tensor out = at::scaled_dot_product_attention(split_heads(q, n, heads), part(0), part(1), {}, 0.0, causal);
  return layer.out.plus(x, out.transpose(1, 2).reshape({x.size(0), width}));
}

at::Tensor ClipEncoder::attend_at(const Layer& layer, const at::Tensor& x, const at::Tensor& positions,
                                  bool causal) const {
  const std::int64_t width = config_.hidden_size, heads = config_.num_attention_heads;
  const std::int64_t n = positions.size(0), length = x.size(0) / n;
  const at::Tensor in = at::layer_norm(x, {width}, layer.norm_weight, layer.norm_bias, config_.layer_norm_eps);
  const at::Tensor kv = layer.kv(in);
  const auto part = [&](std::int64_t i) { return split_heads(kv.narrow(1, i * width, width), n, heads); };
  const at::Tensor steps = at::arange(length, positions.options());
  const at::Tensor rows = at::arange(n, positions.options()) * length + positions;
  std::optional<at::Tensor> mask;
  if (causal) mask = steps.unsqueeze(0).le(positions.unsqueeze(1)).view({n, 1, 1, length});
  const at::Tensor q = split_heads(layer.q(in.index_select(0, rows)), n, heads);
  const at::Tensor out = at::scaled_dot_product_attention(q, part(0), part(1), mask);
  return layer.out.plus(x.index_select(0, rows), out.transpose(1, 2).reshape({n, width}));
}

}  // namespace reco
