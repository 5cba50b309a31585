// SPDX-License-Identifier: Apache-2.0
// What training reads: pairs, their neighbours, and the order in which they come.
#pragma once

#include <cstdint>
#include <vector>

#include "fusion_layer.h"
#include "reco/training.h"

namespace reco::training {

/// Both sides of a batch of pairs.
struct Pairs {
  fusion::Batch images;
  fusion::Batch texts;
};

/// All pairs with their neighbours, as tensors that own nothing: data and neighbours must outlive them.
class Dataset {
 public:
  /// Searches `memory` for every pair, its own key left out. Throws Error when data and memory do not fit.
  Dataset(const TrainingData& data, const Memory& memory, const TrainingConfig& config, const Progress& progress);

  Pairs rows(const std::vector<std::int64_t>& rows) const;

  /// The rows of each concept that is trained on; of each that is held out.
  const std::vector<std::vector<std::int64_t>>& train() const { return train_; }
  const std::vector<std::vector<std::int64_t>>& validation() const { return validation_; }

  /// The batches of one epoch: concepts in random order, each through one random row. Depends on seed and epoch alone,
  /// so that a resumed run sees what an unbroken one would.
  std::vector<std::vector<std::int64_t>> epoch(std::uint64_t seed, std::int64_t epoch, std::int64_t batch_size) const;

 private:
  void split(const std::vector<std::int64_t>& concepts, double share, std::uint64_t seed);

  Neighbors image_neighbors_, text_neighbors_;
  fusion::Batch images_, texts_;
  std::vector<std::vector<std::int64_t>> train_, validation_;
};

/// Share of the given rows whose refined image is nearest to its own concept's refined text, among the texts of
/// `candidates` (one row a concept); `own[i]` is the place of row i's concept among them.
double accuracy(const at::Tensor& images, const at::Tensor& texts, const std::vector<std::int64_t>& own);

}  // namespace reco::training
