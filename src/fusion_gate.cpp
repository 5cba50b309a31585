// SPDX-License-Identifier: Apache-2.0
#include "fusion_gate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace reco::fusion {

namespace {

constexpr float kLeast = -1.0F;            // of cosines
constexpr std::int64_t kRowsAtLeast = 64;  // that a second thread is worth

float highest(std::span<const float> x, std::span<const bool> present) {
  float found = kLeast;
  for (std::size_t i = 0; i < x.size(); ++i) found = present[i] ? std::max(found, x[i]) : found;
  return found;
}

// What one query and its k neighbours look like; what is absent counts nowhere.
struct View {
  std::span<const float> scores, with_query;  // [k]
  const float* cosines;                       // [k, k], of partners
  std::span<const bool> present;
  std::span<float> weights, agreement, best;  // [k]: softmax over the similarities; see Features

  // fn(j) of each neighbour that is there, added up.
  template <typename Fn>
  float sum(const Fn& fn) const {
    float out = 0;
    for (std::size_t j = 0; j < present.size(); ++j) out += present[j] ? fn(j) : 0.0F;
    return out;
  }

  void weigh(float sharpness) const {
    const float top = highest(scores, present);
    const float total = sum([&](std::size_t j) { return weights[j] = std::exp((scores[j] - top) * sharpness); });
    for (std::size_t j = 0; j < present.size(); ++j) weights[j] = present[j] ? weights[j] / total : 0.0F;
  }

  // A neighbour that is alone agrees with nobody: zero.
  void compare(std::size_t j) const {
    const float* row = cosines + j * present.size();
    float mean = 0, others = 0, most = -2;
    for (std::size_t l = 0; l < present.size(); ++l) {
      if (l == j || !present[l]) continue;
      mean += weights[l] * row[l];
      others += weights[l];
      most = std::max(most, row[l]);
    }
    agreement[j] = mean / std::max(others, 1e-6F);
    best[j] = most < kLeast - 0.5F ? 0.0F : most;
  }

  void write_neighbors(float* out) const {
    const float top = highest(scores, present);
    for (std::size_t j = 0; j < present.size(); ++j) {
      const std::array<float, kNeighborFeatures> row{scores[j], scores[j] - top, with_query[j], agreement[j], best[j]};
      for (const float x : row) *out++ = present[j] ? x : 0.0F;
    }
  }

  void write_query(float* out) const {
    const float count = std::max(1.0F, sum([](std::size_t) { return 1.0F; }));
    const auto mean = [&](std::span<const float> x) { return sum([&](std::size_t j) { return x[j]; }) / count; };
    const float middle = mean(scores);
    const float variance = sum([&](std::size_t j) { return (scores[j] - middle) * (scores[j] - middle); }) / count;
    const std::array<float, kQueryFeatures> row{
        highest(scores, present), middle,           std::sqrt(std::max(variance, 1e-12F)), mean(agreement), mean(best),
        highest(best, present),   mean(with_query), highest(with_query, present),          std::log(count)};
    std::copy(row.begin(), row.end(), out);
  }
};

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

// On the CPU in one pass over the products, which are all that is large: as tensor operations these are a hundred.
Features features(const Side& side, const Batch& batch) {
  const auto cpu = [](const at::Tensor& x) { return x.detach().cpu().contiguous(); };
  const auto n = batch.scores.size(0), k = batch.scores.size(1);
  const auto cosines = cpu(at::matmul(batch.partners, batch.partners.transpose(1, 2)));
  const auto with_query = cpu(at::matmul(batch.partners, batch.queries.unsqueeze(2)));
  const auto scores = cpu(batch.scores), mask = cpu(batch.mask);
  const float sharpness = side["sharpness"].item<float>();
  const auto neighbor = at::empty({n, k, kNeighborFeatures}, at::kFloat),
             query = at::empty({n, kQueryFeatures}, at::kFloat);
  float *neighbors = neighbor.mutable_data_ptr<float>(), *queries = query.mutable_data_ptr<float>();
  at::parallel_for(0, n, kRowsAtLeast, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> scratch(static_cast<std::size_t>(3 * k));
    const auto part = [&](std::int64_t i) { return std::span(scratch).subspan(i * k, k); };
    for (std::int64_t i = first; i < last; ++i) {
      const auto row = [&](const at::Tensor& x) { return std::span(x.const_data_ptr<float>() + i * k, k); };
      const View view{row(scores),
                      row(with_query),
                      cosines.const_data_ptr<float>() + i * k * k,
                      std::span(mask.const_data_ptr<bool>() + i * k, k),
                      part(0),
                      part(1),
                      part(2)};
      view.weigh(sharpness);
      for (std::int64_t j = 0; j < k; ++j) view.compare(j);
      view.write_neighbors(neighbors + i * k * kNeighborFeatures);
      view.write_query(queries + i * kQueryFeatures);
    }
  });
  return {neighbor.to(batch.scores.device()), query.to(batch.scores.device())};
}

Gate gate(const Side& side, const Batch& batch) {
  const auto seen = features(side, batch);
  const auto neighbor = standardised(side, "neighbor", seen.neighbor);
  const auto trust = network(side, "trust", neighbor);
  const auto confidence = network(side, "confidence", standardised(side, "query", seen.query));
  auto logits = batch.scores * side["sharpness"] + at::log_sigmoid(trust.detach());
  if (side.has("relevance.linear1.weight")) logits = logits + network(side, "relevance", neighbor);
  return {masked_softmax(logits, batch.mask), confidence.detach().sigmoid().unsqueeze(1), trust, confidence};
}

void add_gate(std::map<std::string, std::vector<std::int64_t>>& shapes, const FusionConfig& config) {
  const auto width = config.gate_width;
  for (const auto& [name, count] : {std::pair{"neighbor", kNeighborFeatures}, std::pair{"query", kQueryFeatures}}) {
    shapes[std::string(name) + ".mean"] = shapes[std::string(name) + ".std"] = {count};
  }
  add_network(shapes, "trust", kNeighborFeatures, width);
  if (config.relevance) add_network(shapes, "relevance", kNeighborFeatures, width);
  add_network(shapes, "confidence", kQueryFeatures, width);
}

}  // namespace reco::fusion
