// SPDX-License-Identifier: Apache-2.0
#include "fusion_layer.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <limits>

#include "reco/error.h"

namespace reco::fusion {

namespace {

constexpr std::int64_t kNeighborFeatures = 4;
constexpr std::int64_t kQueryFeatures = 5;
constexpr double kEpsilon = 1e-5;

// The weights of one side under its name.
class Side {
 public:
  Side(const Parameters& parameters, const std::string& side) : parameters_(parameters), prefix_(side + ".") {}
  const at::Tensor& operator[](const std::string& name) const { return parameters_.at(prefix_ + name); }
  at::Tensor linear(const at::Tensor& x, const std::string& name) const {
    return at::linear(x, (*this)[name + ".weight"], (*this)[name + ".bias"]);
  }
  at::Tensor layer_norm(const at::Tensor& x, const std::string& name) const {
    return at::layer_norm(x, {x.size(-1)}, (*this)[name + ".weight"], (*this)[name + ".bias"], kEpsilon);
  }

 private:
  const Parameters& parameters_;
  std::string prefix_;
};

at::Tensor unit(const at::Tensor& x) { return x / x.norm(2, {-1}, true).clamp_min(1e-12); }

// Softmax over the neighbours that are there; all zeros where none is.
at::Tensor masked_softmax(const at::Tensor& logits, const at::Tensor& mask) {
  return at::softmax(logits.masked_fill(mask.logical_not(), -1e9), -1) * mask;
}

at::Tensor weighted(const at::Tensor& weights, const at::Tensor& partners) {
  return at::matmul(weights.unsqueeze(1), partners).squeeze(1);
}

// [n, t, d] to [n, heads, t, d / heads].
at::Tensor split_heads(const at::Tensor& x, std::int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, -1}).transpose(1, 2);
}

struct Attended {
  at::Tensor tokens;   // [n, t, d]
  at::Tensor weights;  // [n, k]: of the query token on the neighbours
};

// Multi-head self-attention; `queries` rows from the front are computed (all, or the query token alone).
Attended attend(const Side& side, const std::string& layer, const at::Tensor& x, const at::Tensor& bias,
                std::int64_t heads, std::int64_t queries) {
  const auto d = x.size(2);
  const auto& weight = side[layer + ".self_attn.in_proj_weight"];
  const auto& offset = side[layer + ".self_attn.in_proj_bias"];
  const auto q = at::linear(x.narrow(1, 0, queries), weight.narrow(0, 0, d), offset.narrow(0, 0, d));
  const auto kv = at::linear(x, weight.narrow(0, d, 2 * d), offset.narrow(0, d, 2 * d));
  const auto keys = split_heads(kv.narrow(2, 0, d), heads);
  const auto values = split_heads(kv.narrow(2, d, d), heads);
  const double scale = 1.0 / std::sqrt(static_cast<double>(d / heads));
  // Plain products: the flash kernel's backward pass is slow on sequences this short.
  const auto attention = at::softmax(at::matmul(split_heads(q, heads) * scale, keys.transpose(2, 3)) + bias, -1);
  const auto mixed = at::matmul(attention, values).transpose(1, 2).reshape({x.size(0), queries, d});
  return {side.linear(mixed, layer + ".self_attn.out_proj"),
          attention.select(2, 0).mean(1).narrow(1, 1, x.size(1) - 1)};
}

// The pre-norm encoder over scale * [query, partners]; only the query token leaves the last layer.
Attended encode(const FusionConfig& config, const Side& side, const Batch& batch, double scale) {
  auto x = at::cat({batch.queries.unsqueeze(1), batch.partners}, 1) * scale;
  if (config.method == "transformer" && config.positions) x = x + side["positions"].narrow(0, 0, x.size(1));
  const auto absent = at::constant_pad_nd(batch.mask.logical_not(), {1, 0}, 0);
  const auto bias = at::zeros_like(absent, batch.queries.options()).masked_fill(absent, -1e9).unsqueeze(1).unsqueeze(1);
  at::Tensor weights;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const auto layer = "layers." + std::to_string(i);
    const auto queries = i + 1 == config.layers ? 1 : x.size(1);
    const auto attended = attend(side, layer, side.layer_norm(x, layer + ".norm1"), bias, config.heads, queries);
    x = x.narrow(1, 0, queries) + attended.tokens;
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

// A network of one hidden layer over standardised features.
at::Tensor network(const Side& side, const std::string& name, const at::Tensor& x) {
  const auto standard = (x - side[name + ".mean"]) / side[name + ".std"];
  return side.linear(at::gelu(side.linear(standard, name + ".linear1")), name + ".linear2");
}

// Of each neighbour: its similarity, how far it is behind the best, its partner's agreement with the query and with the
// other partners. [n, k, 4]
at::Tensor neighbor_features(const Side& side, const Batch& batch) {
  const auto agreement_with_query = at::matmul(batch.partners, batch.queries.unsqueeze(2)).squeeze(2);
  const auto mean = weighted(masked_softmax(batch.scores * side["sharpness"], batch.mask), batch.partners);
  const auto agreement = at::matmul(batch.partners, mean.unsqueeze(2)).squeeze(2);
  const auto behind = batch.scores - batch.scores.narrow(1, 0, 1);
  return at::stack({batch.scores, behind, agreement_with_query, agreement}, 2) * batch.mask.unsqueeze(2);
}

// Of each query: best and mean similarity, length of the mean partner (their agreement), its agreement with the query,
// and the entropy of the weights. [n, 5]
at::Tensor query_features(const Batch& batch, const at::Tensor& attention, const at::Tensor& mean) {
  const auto length = mean.square().sum(-1).clamp_min(1e-12).sqrt();
  const auto agreement = (mean * batch.queries).sum(-1) / length;
  const auto entropy = -(attention * (attention + 1e-9).log()).sum(-1);
  return at::stack({batch.scores.select(1, 0), (attention * batch.scores).sum(-1), length, agreement, entropy}, 1);
}

struct Mixed {
  at::Tensor attention;  // [n, k]
  at::Tensor mean;       // [n, d]
};

Mixed mix(const Side& side, const Batch& batch, const at::Tensor* extra) {
  auto logits = batch.scores * side["sharpness"];
  if (extra != nullptr) logits = logits + *extra;
  const auto attention = masked_softmax(logits, batch.mask);
  return {attention, weighted(attention, batch.partners)};
}

Fused fuse_mean(const Side& side, const Batch& batch) {
  const auto mixed = mix(side, batch, nullptr);
  const auto gate = side["weight"].expand({batch.queries.size(0), 1});
  return {unit(batch.queries + gate * mixed.mean), mixed.attention, gate};
}

Fused fuse_gated(const FusionConfig& config, const Side& side, const Batch& batch) {
  const auto extra = network(side, "neighbor", neighbor_features(side, batch)).squeeze(2);
  const auto mixed = mix(side, batch, &extra);
  const auto step = network(side, "gate", query_features(batch, mixed.attention, mixed.mean)).clamp(-4.0, 4.0);
  const auto gate = side["weight"] * step.exp();
  auto moved = batch.queries + gate * mixed.mean;
  if (config.layers > 0) moved = moved + correct(config, side, batch);
  return {unit(moved), mixed.attention, gate};
}

Fused fuse_transformer(const FusionConfig& config, const Side& side, const Batch& batch) {
  const auto encoded = encode(config, side, batch, 1.0);
  const auto tokens = side.layer_norm(encoded.tokens, "norm");
  return {unit(tokens), encoded.weights * batch.mask, at::ones({batch.queries.size(0), 1})};
}

void add_network(std::map<std::string, std::vector<std::int64_t>>& out, const std::string& name, std::int64_t inputs,
                 std::int64_t width) {
  out[name + ".mean"] = {inputs};
  out[name + ".std"] = {inputs};
  out[name + ".linear1.weight"] = {width, inputs};
  out[name + ".linear1.bias"] = {width};
  out[name + ".linear2.weight"] = {1, width};
  out[name + ".linear2.bias"] = {1};
}

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
  const bool branch_end = gated && (ends_with(name, "linear2.weight") || ends_with(name, "out_proj.weight"));
  const bool gain = shape.size() == 1 && name.find("norm") != std::string::npos && ends_with(name, ".weight");
  if (gain || ends_with(name, ".std")) return at::ones(shape);
  if (ends_with(name, "sharpness")) return at::full(shape, 10.0);
  if (ends_with(name, "positions")) return at::empty(shape).normal_(0.0, 0.02, generator);
  if (branch_end || shape.size() != 2) return at::zeros(shape);
  const double bound = std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1]));
  return at::empty(shape).uniform_(-bound, bound, generator);
}

}  // namespace

std::map<std::string, std::vector<std::int64_t>> shapes(const FusionConfig& config) {
  std::map<std::string, std::vector<std::int64_t>> one, both;
  if (config.method != "transformer") one["weight"] = one["sharpness"] = {1};
  if (config.method == "gated") {
    add_network(one, "neighbor", kNeighborFeatures, config.gate_width);
    add_network(one, "gate", kQueryFeatures, config.gate_width);
  }
  if (config.method == "transformer" && config.positions) one["positions"] = {config.k + 1, config.dim};
  const auto layers = config.method == "mean" ? 0 : config.layers;
  const auto hidden = static_cast<std::int64_t>(std::llround(config.mlp_ratio * static_cast<double>(config.dim)));
  for (std::int64_t i = 0; i < layers; ++i) add_layer(one, "layers." + std::to_string(i), config.dim, hidden);
  if (config.method == "transformer") add_norm(one, "norm", config.dim);
  for (const auto& [name, shape] : one) both["image." + name] = both["text." + name] = shape;
  return both;
}

Parameters initialise(const FusionConfig& config, std::uint64_t seed) {
  const auto generator = at::detail::createCPUGenerator(seed);
  Parameters parameters;
  for (const auto& [name, shape] : shapes(config)) parameters[name] = start(config, name, shape, generator);
  return parameters;
}

std::pair<at::Tensor, at::Tensor> features(const Parameters& parameters, const std::string& side, const Batch& batch) {
  const Side weights(parameters, side);
  const auto mixed = mix(weights, batch, nullptr);
  return {neighbor_features(weights, batch), query_features(batch, mixed.attention, mixed.mean)};
}

Fused fuse(const FusionConfig& config, const Parameters& parameters, const std::string& side, const Batch& batch) {
  const Side weights(parameters, side);
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
