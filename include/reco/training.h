// SPDX-License-Identifier: Apache-2.0
/// @file
/// Training of a fusion: only the fusion learns, embeddings and memory stay as they are (RECO, arXiv 2306.07196).
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/fusion.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

/// n image-text pairs to learn from: two matrices, or a memory folder whose float16 shards are read batch by batch.
struct TrainingData {
  Matrix images{};                       ///< [n, dim] unit rows
  Matrix texts{};                        ///< [n, dim] unit rows
  std::optional<Memory> pairs{};         ///< in place of images, texts and keys: all its pairs, in order
  std::vector<std::string> keys{};       ///< a pair's own key in the memory is left out of its neighbours; may be empty
  std::vector<std::int64_t> concepts{};  ///< pairs of one concept never meet in a batch; may be empty: all differ
  std::vector<std::int64_t> held_out{};  ///< rows never learned from: means and epoch are chosen by them; may be empty
};

/// How to train. Out of its range a field is an Error: validate().
///
/// `wrong_captions`, `random_rows`, `dropped` and `random_k` say what a step does to a share of its pairs, so that the
/// gate learns what a bad memory looks like; a rate is drawn for each pair, one in two times all of its neighbours.
/// Clean pairs and wholly wrong ones occur in every batch.
struct TrainingConfig {
  FusionConfig fusion{};           ///< what to train
  std::int64_t batch_size = 4096;  ///< pairs a step; at most one a concept
  std::int64_t micro_batch = 0;    ///< pairs whose gradients are held at a time; 0: all. The result is the same
  std::int64_t epochs = 10;        ///< one epoch shows each concept once, through one of its pairs
  double learning_rate = 1e-3;     ///< peak; linear warm-up, cosine decay to zero (arXiv 1608.03983)
  double layer_rate = 0.1;         ///< of it for the encoder layers of "gated", which memorise where the rest looks up
  double gate_rate = 30.0;         ///< of it for trust and confidence of "gated", which learn from labels
  double wrong_captions = 0.6;     ///< neighbours get the partner of a neighbour of another pair
  double random_rows = 0.1;        ///< neighbours are replaced by other pairs of the batch, with true similarities
  double dropped = 0.5;            ///< up to half of the neighbours go
  double random_k = 0.5;           ///< only the first few, 1 to k, stay
  double shrinkage = 0.03;     ///< r of fusion.metric as a share of S's mean eigenvalue: more stays closer to cosines
  double warmup = 0.05;        ///< share of the steps that warm up
  double weight_decay = 0.01;  ///< AdamW's (Loshchilov and Hutter, arXiv 1711.05101), on matrices only
  /// Weights of NCE(v^, t^), NCE(v^, t), NCE(v, t^): v and t are CLIP's embeddings, v^ and t^ the refined ones, NCE is
  /// InfoNCE in both directions (van den Oord et al., arXiv 1807.03748).
  std::array<double, 3> loss{1.0, 1.0, 1.0};
  double logit_scale = 100.0;  ///< factor on cosines in the loss: CLIP's own
  bool learn_scale = false;    ///< train that factor too
  /// "float32", or "bfloat16" for the matrices of the encoder layers and what is multiplied with them; weights, their
  /// updates, the gate, the refined embeddings and the loss stay in float32.
  std::string precision = "float32";
  std::string device = "cpu";             ///< "cpu", "cuda" or "cuda:N": of step and validation; data stay on the CPU
  std::optional<float> max_similarity{};  ///< image neighbours more similar than this are near-duplicates: left out
  double validation = 0.1;  ///< share of the concepts that is held out to choose the best epoch; 0: none; rows held_out
  std::uint64_t seed = 0;   ///< of weights, batches and spoiled neighbours
  std::filesystem::path log{};          ///< CSV learning curve; empty: none
  std::filesystem::path tensorboard{};  ///< folder for the same curve as a TensorBoard event file; empty: none
  std::filesystem::path checkpoint{};   ///< safetensors file to resume from when it is there; see train()
  std::filesystem::path neighbors{};    ///< folder to keep the neighbours found in, and to find them in; see train()
};

/// Throws Error, naming the field, unless every field is in range.
RECO_API void validate(const TrainingConfig& config);

/// Trains a fusion on `data` with neighbours from `memory` (k = config.fusion.k); the encoder's fingerprint is the
/// memory's. "mean" tunes its weights and its k, config.fusion.k at most, on the training concepts; "gated" starts from
/// such a mean and keeps its weight and sharpness. With data.held_out these are tuned on that, and the epoch is chosen
/// by it. With validation, held-out accuracy chooses: the last epoch that is within a standard error of the best so
/// far, the untrained start among them. Accuracy is the mean of that with clean and that with disturbed neighbours,
/// over 4,096 concepts at most; where disturbance leaves nothing true to be found, CLIP's own answer counts as right.
/// Same seed, threads and machine: same weights, resumed or not.
///
/// Neighbours are searched once, before the first step: 12 k bytes a pair and side, held in memory, or in `neighbors`
/// where that is given, or else, until training is done, in a folder beside `checkpoint` (its name and ".neighbors").
/// Files there are memory-mapped and used again by a later run on the same pairs and memory, with this k or a smaller
/// one; src/training_neighbors.h has their format, which other programs may write. The checkpoint is written after up
/// to twenty of the epochs, and within one every 256 steps. Batches are disturbed on the CPU, so that every device sees
/// the same.
///
/// Throws Error, before the first step, for a device that is not there, data that do not fit or need more memory than
/// the machine has, a checkpoint of another run, and neighbours of something else; later for a loss that is not finite
/// or three times that of the first epoch; also when `progress`, which is told of epochs, stops it. Uses threads()
/// threads; the memory may be searched meanwhile.
RECO_API Fusion train(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config,
                      const Progress& progress = {});

}  // namespace reco
