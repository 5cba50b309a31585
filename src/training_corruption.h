// SPDX-License-Identifier: Apache-2.0
// Spoils neighbours on purpose, and says which are true: what the gate learns from.
#pragma once

#include "training_data.h"

namespace reco::training {

struct Disturbed {
  Pairs pairs;
  at::Tensor image_truth, text_truth;  ///< [n, k] float: 1 where the neighbour is still what the memory says
};

/// Disturbs a batch as the config says; depends on config.seed and `stream` alone. With `all`, every pair is disturbed.
Disturbed disturb(const TrainingConfig& config, const Pairs& pairs, std::uint64_t stream, bool all = false);

}  // namespace reco::training
