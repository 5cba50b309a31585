// SPDX-License-Identifier: Apache-2.0
// One step of training, on the device where the weights are: the loss, its gradients, AdamW.
#pragma once

#include "training_corruption.h"
#include "training_state.h"

namespace reco::training {

/// Name of the logarithm of the factor on cosines, which stands among the weights while training.
inline constexpr const char* kScale = "logit_scale";

/// Batches are read and disturbed on the CPU, weights start there, and what is saved goes back: nothing else moves.
/// What is on the device already is not copied.
Pairs to(const Pairs& pairs, at::Device device);
Disturbed to(const Disturbed& batch, at::Device device);
Parameters to(const Parameters& parameters, at::Device device);

/// Learning rate at a step: linear warm-up, then a cosine to zero.
double rate(const TrainingConfig& config, std::int64_t step, std::int64_t steps);

/// Does one step and returns its loss.
double step(const TrainingConfig& config, State& state, const Disturbed& batch, double rate);

}  // namespace reco::training
