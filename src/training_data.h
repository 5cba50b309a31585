// SPDX-License-Identifier: Apache-2.0
// What training reads: pairs, their neighbours, and the order in which they come.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "fusion_layer.h"
#include "reco/training.h"

namespace reco::training {

/// Both sides of a batch of pairs.
struct Pairs {
  fusion::Batch images;
  fusion::Batch texts;
};

/// All pairs with the row numbers of their neighbours; embeddings are read batch by batch. Data and memory must outlive
/// it.
class Dataset {
 public:
  /// Searches `memory` for every pair, its own key left out. Throws Error when data and memory do not fit.
  Dataset(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config, const Progress& progress);

  /// The given pairs with what is fused of their neighbours.
  Pairs rows(const std::vector<std::int64_t>& rows) const;

  /// The rows of each concept that is trained on; of each that is held out.
  const std::vector<std::vector<std::int64_t>>& train() const { return train_; }
  const std::vector<std::vector<std::int64_t>>& validation() const { return validation_; }

  /// The batches of one epoch: concepts in random order, each through one random row. Depends on seed and epoch alone,
  /// so that a resumed run sees what an unbroken one would.
  std::vector<std::vector<std::int64_t>> epoch(std::uint64_t seed, std::int64_t epoch, std::int64_t batch_size) const;

 private:
  void split(const std::vector<std::int64_t>& concepts, double share, std::uint64_t seed);

  Matrix embeddings(Modality side, std::span<const std::int64_t> rows) const;
  Neighbors search(Modality side, const TrainingConfig& config, const std::function<void(std::int64_t)>& report) const;
  fusion::Batch batch(Modality side, const std::vector<std::int64_t>& rows) const;

  const TrainingData& data_;
  const MemoryBase& memory_;
  FusionConfig config_;
  std::vector<std::int64_t> pair_rows_;  // of data.pairs
  std::int64_t size_ = 0;
  Neighbors images_, texts_;  // without partners
  std::vector<std::vector<std::int64_t>> train_, validation_;
};

/// Share of the given rows whose refined image is nearest to its own concept's refined text, among the texts of
/// `candidates` (one row a concept); `own[i]` is the place of row i's concept among them.
double accuracy(const at::Tensor& images, const at::Tensor& texts, const std::vector<std::int64_t>& own);

}  // namespace reco::training
