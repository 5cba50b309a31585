// SPDX-License-Identifier: Apache-2.0
// The gate of a "gated" fusion: which neighbours to trust, and whether to trust any.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fusion_layer.h"

namespace reco::fusion {

constexpr std::int64_t kNeighborFeatures = 5;
constexpr std::int64_t kQueryFeatures = 9;

/// What the gate sees, before it is standardised.
struct Features {
  at::Tensor neighbor;  ///< [n, k, 5]: similarity; how far it is behind the best; cosine of partner and query; mean
                        ///< cosine with the other partners, weighted by similarity; best cosine with another partner
  at::Tensor query;     ///< [n, 9]: best and mean similarity and its deviation; mean weighted agreement; mean and
                        ///< highest best agreement; mean and highest cosine of partner and query; log of their number
};

struct Gate {
  at::Tensor attention;          ///< [n, k]
  at::Tensor confidence;         ///< [n, 1] probability
  at::Tensor trust_logits;       ///< [n, k]
  at::Tensor confidence_logits;  ///< [n]
};

Features features(const Side& side, const Batch& batch);

/// Trust and confidence are what their labels say of them: their networks get no gradient through the attention.
Gate gate(const Side& side, const Batch& batch);

void add_gate(std::map<std::string, std::vector<std::int64_t>>& shapes, const FusionConfig& config);

}  // namespace reco::fusion
