// SPDX-License-Identifier: Apache-2.0
#include "clip_resnet.h"

#include "clip_encoder.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

constexpr double kEpsilon = 1e-5;  // of the batch normalisation

at::Tensor halve(const at::Tensor& x, std::int64_t stride) {
  return stride == 1 ? x : at::avg_pool2d(x, {stride, stride});
}

}  // namespace

ClipResnet::ClipResnet(const ClipVision& config, const ClipWeights& weights, const at::TensorOptions& options)
    : options_(options), heads_(config.num_attention_heads) {
  for (const char* number : {"1", "2", "3"}) {
    stem_.push_back(load(weights, std::string("visual.conv") + number, std::string("visual.bn") + number));
  }
  for (std::size_t stage = 0; stage < 4; ++stage) {
    for (std::int64_t i = 0; i < config.stages[stage]; ++i) {
      const std::string name = "visual.layer" + std::to_string(stage + 1) + '.' + std::to_string(i);
      Block& block = blocks_.emplace_back();
      block.first = load(weights, name + ".conv1", name + ".bn1");
      block.second = load(weights, name + ".conv2", name + ".bn2");
      block.third = load(weights, name + ".conv3", name + ".bn3");
      if (i == 0) block.shortcut = load(weights, name + ".downsample.0", name + ".downsample.1");
      block.stride = i == 0 && stage > 0 ? 2 : 1;
    }
  }
  const auto get = [&](const std::string& part) { return load_tensor(weights, "visual.attnpool." + part); };
  positions_ = get("positional_embedding").to(options);
  query_weight_ = get("q_proj.weight").to(options).t(), query_bias_ = get("q_proj.bias").to(options);
  kv_weight_ = at::cat({get("k_proj.weight"), get("v_proj.weight")}).to(options).t();
  kv_bias_ = at::cat({get("k_proj.bias"), get("v_proj.bias")}).to(options);
  out_weight_ = get("c_proj.weight").to(options).t(), out_bias_ = get("c_proj.bias").to(options);
}

ClipResnet::Convolution ClipResnet::load(const ClipWeights& weights, const std::string& name,
                                         const std::string& norm) const {
  const auto get = [&](const char* part) { return load_tensor(weights, norm + part); };
  const at::Tensor factor = get(".weight") / (get(".running_var") + kEpsilon).sqrt();
  const at::Tensor weight = load_tensor(weights, name + ".weight") * factor.view({-1, 1, 1, 1});
  const at::Tensor bias = get(".bias") - get(".running_mean") * factor;
  return {weight.to(options_).contiguous(at::MemoryFormat::ChannelsLast), bias.to(options_)};
}

at::Tensor ClipResnet::stem(const at::Tensor& pixels) const {
  at::Tensor x = pixels.to(options_).contiguous(at::MemoryFormat::ChannelsLast);
  for (std::size_t i = 0; i < stem_.size(); ++i) {
    const std::int64_t stride = i == 0 ? 2 : 1;
    x = at::conv2d(x, stem_[i].weight, stem_[i].bias, {stride, stride}, {1, 1}).relu_();
  }
  return halve(x, 2);
}

at::Tensor ClipResnet::residual(const Block& block, const at::Tensor& x) const {
  at::Tensor out = at::conv2d(x, block.first.weight, block.first.bias).relu_();
  out = at::conv2d(out, block.second.weight, block.second.bias, {1, 1}, {1, 1}).relu_();
  out = at::conv2d(halve(out, block.stride), block.third.weight, block.third.bias);
  if (!block.shortcut.weight.defined()) return out.add_(x).relu_();
  return out.add_(at::conv2d(halve(x, block.stride), block.shortcut.weight, block.shortcut.bias)).relu_();
}

/// The mean of all positions is the query; it and they are keys and values.
at::Tensor ClipResnet::pool(const at::Tensor& x) const {
  const std::int64_t n = x.size(0), width = x.size(1);
  const at::Tensor cells = x.flatten(2).transpose(1, 2);
  const at::Tensor tokens = (at::cat({cells.mean({1}, true), cells}, 1) + positions_).contiguous();
  const at::Tensor query = at::addmm(query_bias_, tokens.select(1, 0), query_weight_);
  const at::Tensor kv = at::addmm(kv_bias_, tokens.view({-1, width}), kv_weight_);
  const auto part = [&](std::int64_t i) { return split_heads(kv.narrow(1, i * width, width), n, heads_); };
  const at::Tensor seen = at::scaled_dot_product_attention(split_heads(query, n, heads_), part(0), part(1));
  return at::addmm(out_bias_, seen.reshape({n, width}), out_weight_);
}

at::Tensor ClipResnet::operator()(const at::Tensor& pixels) const {
  at::Tensor x = stem(pixels);
  for (const Block& block : blocks_) {
    check_interrupt();
    x = residual(block, x);
  }
  return pool(x);
}

}  // namespace reco
