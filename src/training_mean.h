// SPDX-License-Identifier: Apache-2.0
// What is chosen on training concepts before the first step: a training-free mean, which "mean" is and where "gated"
// starts, and the metric that "gated" may compare with.
#pragma once

#include <cstdint>
#include <vector>

#include "training_data.h"

namespace reco::training {

/// A mean for both sides over the first `k` neighbours.
struct Mean {
  std::int64_t k = 0;
  MeanWeights image, text;
};

/// One row of each concept, of `most` concepts at most.
std::vector<std::int64_t> first_rows(const Concepts& concepts, std::size_t most);

/// The first k neighbours alone.
Pairs nearest(const Pairs& pairs, const FusionConfig& config, std::int64_t k);

/// The mean with the best accuracy on kTuningConcepts of the training concepts, or of those held out by name: first the
/// same weights on both sides with each number of neighbours up to config.k (with config.k alone unless `any_k`), then,
/// with the best number, one side's weights after the other's until neither finds better ones.
Mean tune_mean(const FusionConfig& config, const Dataset& data, bool any_k);

/// Where the config has a metric: sets it to that of the scatter within training concepts, and has `data` compare so.
void learn_metric(const TrainingConfig& config, Parameters& parameters, Dataset& data);

/// Starts a gated fusion at the best mean, its features standardised over disturbed training rows.
void start_from_mean(const TrainingConfig& config, Parameters& parameters, const Dataset& data);

inline constexpr std::size_t kTuningConcepts = 2048;  ///< as many queries and candidates for a choice

}  // namespace reco::training
