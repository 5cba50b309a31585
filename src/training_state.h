// SPDX-License-Identifier: Apache-2.0
// The state of a training run: weights, AdamW's moments, the best epoch so far; saved and resumed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "fusion_layer.h"
#include "reco/training.h"

namespace reco::training {

struct Record {
  std::int64_t epoch = 0;  ///< epochs done; 0 is the start
  double learning_rate = 0;
  double loss = 0;
  double validation = 0;    ///< held-out accuracy
  double data_seconds = 0;  ///< of the epoch: reading and disturbing batches
  double step_seconds = 0;  ///< of the epoch: forward, backward, AdamW
};

/// Sums over the epoch that is under way.
struct Running {
  std::int64_t batches = 0;
  double loss = 0;
  double data_seconds = 0;
  double step_seconds = 0;
};

struct State {
  Parameters parameters;     ///< trained weights and buffers, on the device
  Parameters first, second;  ///< AdamW's moments of the trained ones, there too
  Parameters best;           ///< `parameters` of the best epoch, on the CPU
  std::int64_t epoch = 0;    ///< epochs done
  std::int64_t step = 0;     ///< steps done
  std::int64_t best_epoch = 0;
  double best_validation = -1;
  Running running;
  std::vector<Record> curve;
};

/// Everything that must agree for a run to be resumed, as JSON text.
std::string identity(const TrainingConfig& config, const TrainingData& data, const std::string& encoder);

void save(const State& state, const std::filesystem::path& file, const std::string& identity);

/// Throws Error when the file is no checkpoint or belongs to another run.
void check_run(const std::filesystem::path& file, const std::string& identity);

/// Throws Error when the file is damaged or belongs to another run (another identity or other shapes than `state` has).
void resume(State& state, const std::filesystem::path& file, const std::string& identity);

/// Writes the whole curve so far as CSV.
void write_log(const State& state, const std::filesystem::path& file);

/// Writes the whole curve so far as a TensorBoard event file in a folder.
void write_tensorboard(const State& state, const std::filesystem::path& folder);

/// Whether a weight learns: all but, of "gated", the standardisation of features and the mean it starts from.
bool learns(const FusionConfig& fusion, const std::string& name);

}  // namespace reco::training
