// SPDX-License-Identifier: Apache-2.0
#include "fusion_layer.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <limits>

#include "fusion_gate.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco::fusion {

namespace {

constexpr double kEpsilon = 1e-5;
constexpr double kFirstConfidence = 3.0;  // a logit: 95 percent

at::Tensor unit(const at::Tensor& x) { return x / x.norm(2, {-1}, true).clamp_min(1e-12); }

at::Tensor weighted(const at::Tensor& weights, const at::Tensor& partners) {
  return at::matmul(weights.unsqueeze(1), partners).squeeze(1);
}

// [n, t, d] to [n, heads, t, d / heads].
at::Tensor split_heads(const at::Tensor& x, std::int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, -1}).transpose(1, 2);
}

struct Attended {
  at::Tensor tokens;   // [n, t, d], or [n, 1, d]
  at::Tensor weights;  // [n, k]: of the query token on the neighbours
};

// One for each query.
at::Tensor ones(const Batch& batch) { return at::ones({batch.queries.size(0), 1}, batch.queries.options()); }

// Multi-head self-attention, in the precision of its matrices.
Attended attend(const Side& side, const std::string& layer, const at::Tensor& tokens, const at::Tensor& bias,
                std::int64_t heads) {
  const auto d = tokens.size(2);
  const auto& weight = side[layer + ".self_attn.in_proj_weight"];
  const auto all = at::linear(tokens.to(weight.scalar_type()), weight, side[layer + ".self_attn.in_proj_bias"]);
  const auto part = [&](std::int64_t i) { return split_heads(all.narrow(2, i * d, d), heads); };
  const auto values = part(2);
  const double scale = 1.0 / std::sqrt(static_cast<double>(d / heads));
  // Plain products: the flash kernel's backward pass is slow on sequences this short.
  const auto attention = at::softmax(at::matmul(part(0) * scale, part(1).transpose(2, 3)) + bias.unsqueeze(1), -1);
  const auto mixed = at::matmul(attention.to(values.scalar_type()), values).transpose(1, 2).reshape(tokens.sizes());
  return {side.linear(mixed, layer + ".self_attn.out_proj"),
          attention.select(2, 0).mean(1).narrow(1, 1, tokens.size(1) - 1)};
}

// The same for the query token alone, with a third of the operations: q . (K x) = (K' q) . x and sum(a V x) = V sum(a
// x), so that no token needs a key or a value. What keys are offset by is the same for all of them and leaves the
// softmax.
Attended attend_once(const Side& side, const std::string& layer, const at::Tensor& tokens, const at::Tensor& bias,
                     std::int64_t heads) {
  const auto n = tokens.size(0), d = tokens.size(2), width = d / heads;
  const auto& weight = side[layer + ".self_attn.in_proj_weight"];
  const auto& offset = side[layer + ".self_attn.in_proj_bias"];
  const auto x = tokens.to(weight.scalar_type());
  const auto matrices = [&](std::int64_t i) { return weight.narrow(0, i * d, d).view({heads, width, d}); };
  const double scale = 1.0 / std::sqrt(static_cast<double>(width));
  const auto query = at::linear(x.select(1, 0), weight.narrow(0, 0, d), offset.narrow(0, 0, d)) * scale;
  const auto asked = at::bmm(query.view({n, heads, width}).transpose(0, 1), matrices(1)).transpose(0, 1);
  const auto attention = at::softmax(at::matmul(asked, x.transpose(1, 2)) + bias, -1);
  const auto mixed = at::matmul(attention.to(x.scalar_type()), x).transpose(0, 1);  // [heads, n, d]
  const auto values = at::bmm(mixed, matrices(2).transpose(1, 2)).transpose(0, 1).reshape({n, 1, d});
  return {side.linear(values + offset.narrow(0, 2 * d, d), layer + ".self_attn.out_proj"),
          attention.mean(1).narrow(1, 1, tokens.size(1) - 1)};
}

// The pre-norm encoder over scale * [query, partners]; only the query token leaves the last layer.
Attended encode(const FusionConfig& config, const Side& side, const Batch& batch, double scale) {
  auto partners = batch.partners;
  if (config.similarity) partners = partners + batch.scores.unsqueeze(2) * side["similarity"];
  auto x = at::cat({batch.queries.unsqueeze(1), partners}, 1) * scale;
  if (config.method == "transformer" && config.positions) x = x + side["positions"].narrow(0, 0, x.size(1));
  const auto absent = at::constant_pad_nd(batch.mask.logical_not(), {1, 0}, 0);
  const auto bias = at::zeros_like(absent, batch.queries.options()).masked_fill(absent, -1e9).unsqueeze(1);
  at::Tensor weights;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    check_interrupt();
    const auto layer = "layers." + std::to_string(i);
    const auto look = i + 1 == config.layers ? attend_once : attend;
    const auto attended = look(side, layer, side.layer_norm(x, layer + ".norm1"), bias, config.heads);
    x = x.narrow(1, 0, attended.tokens.size(1)) + attended.tokens;
    const auto hidden = at::gelu(side.linear(side.layer_norm(x, layer + ".norm2"), layer + ".linear1"));
    x = x + side.linear(hidden, layer + ".linear2");
    weights = attended.weights;
  }
  return {x.select(1, 0), weights};
}

// What the layers change of the query. Unit rows have elements of 1 / sqrt(dim), the layers' branches of about one: at
// that scale the first steps of training would drown the query, so tokens go in with elements of one and come back.
at::Tensor correct(const FusionConfig& config, const Side& side, const Batch& batch) {
  const double scale = std::sqrt(static_cast<double>(config.dim));
  return (encode(config, side, batch, scale).tokens / scale - batch.queries) * batch.mask.any(1, true);
}

// How sure the gate must be: 0.9 opens it to two thirds, 0.3 leaves one percent. Where nothing true was retrieved,
// even a gate that is a little open costs the answers that CLIP had.
constexpr double kConfidencePower = 4.0;

Fused fuse_mean(const Side& side, const Batch& batch) {
  const auto attention = masked_softmax(batch.scores * side["sharpness"], batch.mask);
  const auto gate = side["weight"] * ones(batch);
  return {unit(batch.queries + gate * weighted(attention, batch.partners)), attention, gate, ones(batch)};
}

Fused fuse_gated(const FusionConfig& config, const Side& side, const Batch& batch) {
  const auto seen = gate(side, batch);
  const auto open = seen.confidence.pow(kConfidencePower) * batch.mask.any(1, true);
  auto change = side["weight"] * weighted(seen.attention, batch.partners);
  if (config.layers > 0) change = change + correct(config, side, batch);
  return {unit(batch.queries + open * change),
          seen.attention,
          side["weight"] * open,
          seen.confidence,
          seen.trust_logits,
          seen.confidence_logits};
}

Fused fuse_transformer(const FusionConfig& config, const Side& side, const Batch& batch) {
  const auto encoded = encode(config, side, batch, 1.0);
  auto result = side.layer_norm(encoded.tokens, "norm");
  if (config.residual) result = batch.queries + result / std::sqrt(static_cast<double>(config.dim));
  return {unit(result), encoded.weights * batch.mask, ones(batch), ones(batch)};
}

Fused leave(const Batch& batch) { return {batch.queries, at::zeros_like(batch.scores), 0 * ones(batch), ones(batch)}; }

void add_norm(std::map<std::string, std::vector<std::int64_t>>& out, const std::string& name, std::int64_t d) {
  out[name + ".weight"] = {d};
  out[name + ".bias"] = {d};
}

void add_layer(std::map<std::string, std::vector<std::int64_t>>& out, const std::string& name, std::int64_t d,
               std::int64_t hidden) {
  add_norm(out, name + ".norm1", d);
  add_norm(out, name + ".norm2", d);
  out[name + ".self_attn.in_proj_weight"] = {3 * d, d};
  out[name + ".self_attn.in_proj_bias"] = {3 * d};
  out[name + ".self_attn.out_proj.weight"] = {d, d};
  out[name + ".self_attn.out_proj.bias"] = {d};
  out[name + ".linear1.weight"] = {hidden, d};
  out[name + ".linear1.bias"] = {hidden};
  out[name + ".linear2.weight"] = {d, hidden};
  out[name + ".linear2.bias"] = {d};
}

bool ends_with(const std::string& name, const char* suffix) { return name.ends_with(suffix); }

// How a weight starts, by its name.
at::Tensor start(const FusionConfig& config, const std::string& name, const std::vector<std::int64_t>& shape,
                 const at::Generator& generator) {
  const bool gated = config.method == "gated";
  // Where every branch ends on zeros the layers start as the identity: nothing is corrected.
  // The gate's networks end on zeros too: at first all pairs count alike.
  const bool branch_end = gated && (ends_with(name, "linear2.weight") || ends_with(name, "out_proj.weight"));
  const bool gain = shape.size() == 1 && name.find("norm") != std::string::npos && ends_with(name, ".weight");
  if (gain || ends_with(name, ".std")) return at::ones(shape);
  if (ends_with(name, ".metric")) return at::eye(shape[0]);
  if (ends_with(name, "sharpness")) return at::full(shape, 10.0);
  if (ends_with(name, "confidence.linear2.bias")) return at::full(shape, kFirstConfidence);
  if (ends_with(name, "positions")) return at::empty(shape).normal_(0.0, 0.02, generator);
  if (branch_end || shape.size() != 2) return at::zeros(shape);
  const double bound = std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1]));
  return at::empty(shape).uniform_(-bound, bound, generator);
}

}  // namespace

Side::Side(const FusionConfig& config, const Parameters& parameters, const std::string& side)
    : parameters_(parameters), prefix_(prefix(config, side)) {}

at::Tensor Side::linear(const at::Tensor& x, const std::string& name) const {
  const auto& weight = (*this)[name + ".weight"];
  return at::linear(x.to(weight.scalar_type()), weight, (*this)[name + ".bias"]);
}

at::Tensor Side::layer_norm(const at::Tensor& x, const std::string& name) const {
  return at::layer_norm(x, {x.size(-1)}, (*this)[name + ".weight"], (*this)[name + ".bias"], kEpsilon);
}

std::string prefix(const FusionConfig& config, const std::string& side) {
  return (config.shared ? "shared" : side) + ".";
}

bool refines(const FusionConfig& config, const std::string& side) {
  return config.sides == "both" || config.sides == side;
}

at::Tensor masked_softmax(const at::Tensor& logits, const at::Tensor& mask) {
  return at::softmax(logits.masked_fill(mask.logical_not(), -1e9), -1) * mask;
}

std::map<std::string, std::vector<std::int64_t>> shapes(const FusionConfig& config) {
  std::map<std::string, std::vector<std::int64_t>> one, both;
  if (config.method != "transformer") one["weight"] = one["sharpness"] = {1};
  if (config.method == "gated") add_gate(one, config);
  if (config.method == "transformer" && config.positions) one["positions"] = {config.slots() + 1, config.dim};
  const auto layers = config.method == "mean" ? 0 : config.layers;
  if (config.similarity && layers > 0) one["similarity"] = {config.dim};
  const auto hidden = static_cast<std::int64_t>(std::llround(config.mlp_ratio * static_cast<double>(config.dim)));
  for (std::int64_t i = 0; i < layers; ++i) add_layer(one, "layers." + std::to_string(i), config.dim, hidden);
  if (config.method == "transformer") add_norm(one, "norm", config.dim);
  for (const auto& [name, shape] : one) {
    for (const char* side : {"image", "text"}) both[prefix(config, side) + name] = shape;
  }
  if (config.metric) both["image.metric"] = {config.dim, config.dim};
  return both;
}

Parameters initialise(const FusionConfig& config, std::uint64_t seed) {
  const auto generator = at::detail::createCPUGenerator(seed);
  Parameters parameters;
  for (const auto& [name, shape] : shapes(config)) parameters[name] = start(config, name, shape, generator);
  return parameters;
}

Fused fuse(const FusionConfig& config, const Parameters& parameters, const std::string& side, const Batch& batch) {
  if (!refines(config, side)) return leave(batch);
  const Side weights(config, parameters, side);
  if (config.method == "mean") return fuse_mean(weights, batch);
  if (config.method == "gated") return fuse_gated(config, weights, batch);
  return fuse_transformer(config, weights, batch);
}

at::Tensor view(const MatrixView& matrix, std::vector<std::int64_t> shape) {
  // Eigen's views are row-major with an outer stride; from_blob wants it spelled out for the first dimension.
  auto* data = const_cast<float*>(matrix.data());
  if (matrix.rows() == 0 || matrix.outerStride() == matrix.cols()) return at::from_blob(data, shape, at::kFloat);
  return at::from_blob(data, {matrix.rows(), matrix.cols()}, {matrix.outerStride(), 1}, at::kFloat).reshape(shape);
}

Batch batch(const MatrixView& queries, const Neighbors& neighbors) {
  const auto n = queries.rows();
  const auto k = neighbors.scores.cols();
  auto* rows = const_cast<std::int64_t*>(neighbors.rows.data());
  return {view(queries, {n, queries.cols()}), view(neighbors.partners, {n, k, queries.cols()}),
          view(neighbors.scores, {n, k}), at::from_blob(rows, {n, k}, at::kLong).ge(0)};
}

const char* side_name(Modality modality) { return modality == Modality::image ? "image" : "text"; }

}  // namespace reco::fusion
