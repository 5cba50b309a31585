// SPDX-License-Identifier: Apache-2.0
// What training reads: pairs, their neighbours, and the order in which they come.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "fusion_layer.h"
#include "reco/training.h"
#include "training_neighbors.h"

namespace reco::training {

/// Both sides of a batch of pairs.
struct Pairs {
  fusion::Batch images;
  fusion::Batch texts;
};

/// The rows of each concept: a view.
class Concepts {
 public:
  Concepts(std::span<const std::int64_t> rows, std::span<const std::int64_t> starts) : rows_(rows), starts_(starts) {}

  std::size_t size() const { return starts_.size() - 1; }
  bool empty() const { return size() == 0; }
  std::span<const std::int64_t> operator[](std::size_t i) const {
    return rows_.subspan(starts_[i], starts_[i + 1] - starts_[i]);
  }

 private:
  std::span<const std::int64_t> rows_, starts_;
};

/// Throws Error unless data, memory and config fit each other.
void check_data(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config);

/// All pairs with the row numbers of their neighbours; embeddings are read batch by batch. Data and memory must outlive
/// it. Of pairs that lie in a memory it holds 24 bytes each, and 16 more for an epoch; their neighbours too, unless
/// those have a folder.
class Dataset {
 public:
  /// Searches `memory` for every pair, its own key left out, or opens what an earlier run found. The data are checked
  /// already. Throws Error when found neighbours do not fit.
  Dataset(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config, const Progress& progress);

  /// Forgets the neighbours once training is done, unless the config named a folder for them.
  void discard_neighbors() { neighbors_->discard(); }

  /// Images are compared with the metric of these weights from now on, where the config has one.
  void compare_with(const Parameters& parameters);

  /// One side's embeddings of the given pairs [n, d].
  at::Tensor queries(Modality side, const std::vector<std::int64_t>& rows) const;

  /// The given pairs with what is fused of their neighbours.
  Pairs rows(const std::vector<std::int64_t>& rows) const;

  /// The rows of each concept that is trained on; of each that is held out, kMostHeldOut at most.
  Concepts train() const { return {grouped_, std::span(starts_).subspan(held_out_)}; }
  Concepts validation() const { return {grouped_, std::span(starts_).first(held_out_ + 1)}; }

  /// Whether the data says what is held out; then all that is chosen is chosen by that, else means by what is trained
  /// on.
  bool given_validation() const { return !data_.held_out.empty(); }

  /// The batches of one epoch: concepts in random order, each through one random row. Depends on seed and epoch alone,
  /// so that a resumed run sees what an unbroken one would.
  std::vector<std::vector<std::int64_t>> epoch(std::uint64_t seed, std::int64_t epoch, std::int64_t batch_size) const;

 private:
  void check_reused() const;
  void check_scores(Modality side) const;
  void split(double share, std::uint64_t seed);

  Matrix embeddings(Modality side, std::span<const std::int64_t> rows) const;
  std::vector<std::vector<std::string>> own_keys(std::span<const std::int64_t> rows) const;
  fusion::Batch batch(Modality side, const std::vector<std::int64_t>& rows) const;

  const TrainingData& data_;
  const MemoryBase& memory_;
  FusionConfig config_;
  std::vector<std::int64_t> pair_rows_;  // of data.pairs
  std::int64_t size_ = 0;
  std::optional<NeighborTable> neighbors_;
  std::vector<std::int64_t> grouped_, starts_;  // rows, concept after concept; where each concept begins, and the end
  at::Tensor metric_;                           // of images, where there is one
  std::size_t held_out_ = 0;                    // concepts, the first ones
};

/// How many concepts validation looks at at most: each is compared with all.
inline constexpr std::size_t kMostHeldOut = 4096;

/// The row of `texts` [m, d] that is nearest to each row of `images` [n, d]: [n] int64.
at::Tensor nearest_rows(const at::Tensor& images, const at::Tensor& texts);

/// Share of the images whose nearest text, of one row a concept, is the wanted one [n] int64.
double accuracy(const at::Tensor& images, const at::Tensor& texts, const at::Tensor& wanted);

}  // namespace reco::training
