// SPDX-License-Identifier: Apache-2.0
#include "fusion_gate.h"

namespace reco::fusion {

namespace {

// Cosines of every pair of different partners that are there; -2 elsewhere. [n, k, k]
at::Tensor agreements(const Batch& batch, const at::Tensor& pairs) {
  const auto cosines = at::matmul(batch.partners, batch.partners.transpose(1, 2));
  return cosines.masked_fill(pairs.logical_not(), -2.0);
}

at::Tensor different_pairs(const at::Tensor& mask) {
  const auto k = mask.size(1);
  return mask.unsqueeze(1).logical_and(mask.unsqueeze(2)).logical_and(at::eye(k, mask.options()).logical_not());
}

at::Tensor mean_present(const at::Tensor& x, const Batch& batch, const at::Tensor& count) {
  return (x * batch.mask).sum(1) / count;
}

at::Tensor highest(const at::Tensor& x, const at::Tensor& mask) {
  return std::get<0>(x.masked_fill(mask.logical_not(), -1.0).max(1));
}

at::Tensor neighbor_features(const Side& side, const Batch& batch) {
  const auto weights = masked_softmax(batch.scores * side["sharpness"], batch.mask);
  const auto pairs = different_pairs(batch.mask);
  const auto cosines = agreements(batch, pairs);
  const auto others = weights.unsqueeze(1) * pairs;
  const auto weighted = (others * cosines).sum(2) / others.sum(2).clamp_min(1e-6);
  // A neighbour that is alone agrees with nobody: zero.
  const auto best = std::get<0>(cosines.max(2)).masked_fill(pairs.any(2).logical_not(), 0.0);
  const auto with_query = at::matmul(batch.queries.unsqueeze(1), batch.partners.transpose(1, 2)).squeeze(1);
  const auto behind = batch.scores - highest(batch.scores, batch.mask).unsqueeze(1);
  return at::stack({batch.scores, behind, with_query, weighted, best}, 2) * batch.mask.unsqueeze(2);
}

at::Tensor query_features(const at::Tensor& neighbor, const Batch& batch) {
  const auto count = batch.mask.sum(1).clamp_min(1).to(at::kFloat);
  const auto scores = neighbor.select(2, 0), with_query = neighbor.select(2, 2);
  const auto weighted = neighbor.select(2, 3), best = neighbor.select(2, 4);
  const auto mean = mean_present(scores, batch, count);
  const auto variance = mean_present((scores - mean.unsqueeze(1)).square(), batch, count);
  return at::stack({highest(scores, batch.mask), mean, variance.clamp_min(1e-12).sqrt(),
                    mean_present(weighted, batch, count), mean_present(best, batch, count), highest(best, batch.mask),
                    mean_present(with_query, batch, count), highest(with_query, batch.mask), count.log()},
                   1);
}

at::Tensor standardised(const Side& side, const std::string& name, const at::Tensor& x) {
  return (x - side[name + ".mean"]) / side[name + ".std"];
}

// A network of one hidden layer with one output.
at::Tensor network(const Side& side, const std::string& name, const at::Tensor& x) {
  return side.linear(at::gelu(side.linear(x, name + ".linear1")), name + ".linear2").squeeze(-1);
}

void add_network(std::map<std::string, std::vector<std::int64_t>>& out, const std::string& name, std::int64_t inputs,
                 std::int64_t width) {
  out[name + ".linear1.weight"] = {width, inputs};
  out[name + ".linear1.bias"] = {width};
  out[name + ".linear2.weight"] = {1, width};
  out[name + ".linear2.bias"] = {1};
}

}  // namespace

Features features(const Side& side, const Batch& batch) {
  const auto neighbor = neighbor_features(side, batch);
  return {neighbor, query_features(neighbor, batch)};
}

Gate gate(const Side& side, const Batch& batch) {
  const auto seen = features(side, batch);
  const auto neighbor = standardised(side, "neighbor", seen.neighbor);
  const auto trust = network(side, "trust", neighbor);
  const auto confidence = network(side, "confidence", standardised(side, "query", seen.query));
  const auto logits =
      batch.scores * side["sharpness"] + at::log_sigmoid(trust.detach()) + network(side, "relevance", neighbor);
  return {masked_softmax(logits, batch.mask), confidence.detach().sigmoid().unsqueeze(1), trust, confidence};
}

void add_gate(std::map<std::string, std::vector<std::int64_t>>& shapes, std::int64_t width) {
  for (const auto& [name, count] : {std::pair{"neighbor", kNeighborFeatures}, std::pair{"query", kQueryFeatures}}) {
    shapes[std::string(name) + ".mean"] = shapes[std::string(name) + ".std"] = {count};
  }
  add_network(shapes, "trust", kNeighborFeatures, width);
  add_network(shapes, "relevance", kNeighborFeatures, width);
  add_network(shapes, "confidence", kQueryFeatures, width);
}

}  // namespace reco::fusion
