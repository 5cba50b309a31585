// SPDX-License-Identifier: Apache-2.0
#include "training_mean.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <tuple>

#include "fusion_gate.h"
#include "fusion_metric.h"
#include "training_corruption.h"

namespace reco::training {

namespace {

constexpr std::size_t kScatterRows = 65'536;   // enough for a matrix of some thousand columns
constexpr std::size_t kScatterRowsOfOne = 64;  // concept

// Every mean that is tried for a side: CLIP alone first, so that a tie is its.
std::vector<MeanWeights> grid() {
  std::vector<MeanWeights> out{{0.0F, 0.0F}};
  for (const float weight : {0.25F, 0.5F, 1.0F, 2.0F, 4.0F, 8.0F}) {
    for (const float sharpness : {0.0F, 10.0F, 20.0F, 30.0F, 50.0F, 100.0F}) out.push_back({weight, sharpness});
  }
  return out;
}

// The numbers of neighbours that are tried, all of them last.
std::vector<std::int64_t> numbers_up_to(std::int64_t k) {
  std::vector<std::int64_t> out;
  for (const std::int64_t few : {1, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500, 1000, 2000}) {
    if (few < k) out.push_back(few);
  }
  out.push_back(k);
  return out;
}

// Tries means on the same rows and keeps the best.
class Tuning {
 public:
  Tuning(const FusionConfig& config, Pairs pairs)
      : config_(config), pairs_(std::move(pairs)), own_(at::arange(pairs_.images.queries.size(0), at::kLong)) {}

  const Mean& best() const { return best_; }

  // The same weights on both sides.
  void try_both(std::int64_t k) {
    const auto pairs = nearest(pairs_, config_, k);
    for (const auto& weights : grid()) {
      const Mean mean{k, weights, weights};
      keep(mean, refined("image", weights, pairs.images), refined("text", weights, pairs.texts));
    }
  }

  // One side's weights after the other's, until neither finds better ones.
  void try_sides() {
    if (config_.shared || config_.sides != "both") return;
    for (bool better = true; better;) {
      better = try_side(true);
      better = try_side(false) || better;
    }
  }

  // Other weights on one side; returns whether any is better.
  bool try_side(bool image) {
    const auto before = accuracy_;
    const auto pairs = nearest(pairs_, config_, best_.k);
    const auto fixed = image ? refined("text", best_.text, pairs.texts) : refined("image", best_.image, pairs.images);
    for (const auto& weights : grid()) {
      auto mean = best_;
      (image ? mean.image : mean.text) = weights;
      const auto changed = image ? refined("image", weights, pairs.images) : refined("text", weights, pairs.texts);
      keep(mean, image ? changed : fixed, image ? fixed : changed);
    }
    return accuracy_ > before;
  }

 private:
  void keep(const Mean& mean, const at::Tensor& images, const at::Tensor& texts) {
    const double found = accuracy(images, texts, own_);
    if (found > accuracy_) std::tie(accuracy_, best_) = std::tuple{found, mean};
  }

  at::Tensor refined(const char* side, const MeanWeights& weights, const fusion::Batch& batch) const {
    if (!fusion::refines(config_, side)) return batch.queries;
    const FusionConfig config{.method = "mean", .dim = batch.queries.size(1), .layers = 0, .heads = 1};
    const std::string prefix = std::string(side) + ".";
    const Parameters parameters{{prefix + "weight", at::full({1}, weights.weight)},
                                {prefix + "sharpness", at::full({1}, weights.sharpness)}};
    return fusion::fuse(config, parameters, side, batch).embeddings;
  }

  FusionConfig config_;
  Pairs pairs_;
  at::Tensor own_;
  double accuracy_ = -1;
  Mean best_;
};

void set_standard(Parameters& parameters, const std::string& name, const at::Tensor& features) {
  const auto flat = features.reshape({-1, features.size(-1)});
  if (flat.size(0) < 2) return;  // next to nothing was retrieved: as they come
  parameters[name + ".mean"] = flat.mean(0);
  parameters[name + ".std"] = flat.std(0).clamp_min(1e-3);
}

fusion::Batch nearest(const fusion::Batch& batch, std::int64_t groups, std::int64_t k) {
  const auto n = batch.scores.size(0), all = batch.scores.size(1) / groups;
  const auto cut = [&](const at::Tensor& x) {
    return x.reshape({n, groups, all, -1}).narrow(2, 0, k).reshape({n, groups * k, -1});
  };
  return {batch.queries, cut(batch.partners), cut(batch.scores).squeeze(2), cut(batch.mask).squeeze(2), batch.compared};
}

// Scatter of images within training concepts; some rows of each are enough.
at::Tensor scatter_of(const Dataset& data) {
  std::vector<std::int64_t> rows, groups;
  const auto concepts = data.train();
  for (std::size_t i = 0; i < concepts.size() && rows.size() < kScatterRows; ++i) {
    const auto some = concepts[i].first(std::min(concepts[i].size(), kScatterRowsOfOne));
    rows.insert(rows.end(), some.begin(), some.end());
    groups.push_back(static_cast<std::int64_t>(some.size()));
  }
  return fusion::scatter(data.queries(Modality::image, rows), groups);
}

}  // namespace

void learn_metric(const TrainingConfig& config, Parameters& parameters, Dataset& data) {
  if (!config.fusion.metric) return;
  parameters["image.metric"] = fusion::metric(scatter_of(data), config.shrinkage);
  data.compare_with(parameters);
}

std::vector<std::int64_t> first_rows(const Concepts& concepts, std::size_t most) {
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i < std::min(concepts.size(), most); ++i) rows.push_back(concepts[i].back());
  return rows;
}

Pairs nearest(const Pairs& pairs, const FusionConfig& config, std::int64_t k) {
  const std::int64_t groups = config.fuse == "both" ? 2 : 1;  // all partners, then all same sides
  if (k * groups >= pairs.images.scores.size(1)) return pairs;
  return {nearest(pairs.images, groups, k), nearest(pairs.texts, groups, k)};
}

Mean tune_mean(const FusionConfig& config, const Dataset& data, bool any_k) {
  const c10::NoGradGuard no_grad;
  const auto concepts = data.given_validation() ? data.validation() : data.train();
  Tuning tuning(config, data.rows(first_rows(concepts, kTuningConcepts)));
  for (const auto k : any_k ? numbers_up_to(config.k) : std::vector{config.k}) tuning.try_both(k);
  tuning.try_sides();
  return tuning.best();
}

void start_from_mean(const TrainingConfig& config, Parameters& parameters, const Dataset& data) {
  const auto mean = tune_mean(config.fusion, data, false);
  const auto rows = disturb(config, data.rows(first_rows(data.train(), kTuningConcepts)), ~0ULL).pairs;
  for (const bool image : {true, false}) {
    const std::string side = image ? "image" : "text";
    if (!fusion::refines(config.fusion, side)) continue;
    const auto prefix = fusion::prefix(config.fusion, side);
    const auto& weights = image ? mean.image : mean.text;
    // A weight of zero would leave nothing to learn.
    parameters[prefix + "weight"].fill_(std::max(weights.weight, 0.05F));
    parameters[prefix + "sharpness"].fill_(weights.sharpness);
    const auto& batch = image ? rows.images : rows.texts;
    const auto seen = fusion::features(fusion::Side(config.fusion, parameters, side), batch);
    const auto present = seen.neighbor.masked_select(batch.mask.unsqueeze(2));
    set_standard(parameters, prefix + "neighbor", present.view({-1, fusion::kNeighborFeatures}));
    set_standard(parameters, prefix + "query", seen.query);
  }
}

}  // namespace reco::training
