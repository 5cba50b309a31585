// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "device.h"
#include "reco/error.h"
#include "reco/threads.h"
#include "training_corruption.h"
#include "training_mean.h"
#include "training_state.h"
#include "training_step.h"

namespace reco {

namespace {

using training::Dataset;
using training::disturb;
using training::kScale;
using training::State;

constexpr std::int64_t kStepsBetweenSaves = 256;
constexpr std::size_t kRowsAtOnce = 8192;  // of those held out

void check_range(bool condition, const char* field, const char* expected, double found) {
  check(condition, "training.validate", field, " must be ", expected, ", got ", found);
}

at::Device device_of(const Parameters& parameters) { return parameters.begin()->second.device(); }

// One side of some rows: as CLIP has them, refined, and whether anything true was retrieved [n].
struct Seen {
  at::Tensor queries, embeddings, found;
};

// Some at a time, so that memory is bounded.
Seen look(const TrainingConfig& config, const Parameters& parameters, const Dataset& data, const char* side,
          std::span<const std::int64_t> rows, bool disturbed) {
  std::vector<at::Tensor> queries, embeddings, found;
  for (std::size_t first = 0; first < rows.size(); first += kRowsAtOnce) {
    const auto part = rows.subspan(first, std::min(kRowsAtOnce, rows.size() - first));
    auto pairs = training::nearest(data.rows({part.begin(), part.end()}), config.fusion, config.fusion.k);
    const bool image = side[0] == 'i';
    at::Tensor truth = image ? pairs.images.mask : pairs.texts.mask;
    if (disturbed) {
      auto spoiled = disturb(config, pairs, ~1ULL, true);
      pairs = std::move(spoiled.pairs);
      truth = image ? spoiled.image_truth : spoiled.text_truth;
    }
    pairs = training::to(pairs, device_of(parameters));
    const auto& batch = image ? pairs.images : pairs.texts;
    queries.push_back(batch.queries);
    embeddings.push_back(fusion::fuse(config.fusion, parameters, side, batch).embeddings);
    found.push_back(truth.to(batch.queries.device()).gt(0).any(1));
  }
  return {at::cat(queries), at::cat(embeddings), at::cat(found)};
}

// Share of held-out rows that are answered right; all rows of held-out concepts. Candidates are a text of each, and of
// those trained on, unless the same concepts may be among both. Right is a row's own concept, or, where disturbance
// left nothing true to be retrieved, what CLIP answers by itself: else nobody would notice a gate that stays open, on
// concepts that CLIP does not know anyway.
double held_out_accuracy(const TrainingConfig& config, const Parameters& parameters, const Dataset& data,
                         bool disturbed) {
  auto candidates = training::first_rows(data.train(), data.given_validation() ? 0 : training::kTuningConcepts);
  const auto known = candidates.size();
  const auto held = training::first_rows(data.validation(), data.validation().size());
  candidates.insert(candidates.end(), held.begin(), held.end());
  std::vector<std::int64_t> rows, own;
  for (std::size_t i = 0; i < data.validation().size(); ++i) {
    for (const auto row : data.validation()[i]) {
      rows.push_back(row);
      own.push_back(static_cast<std::int64_t>(known + i));
    }
  }
  const auto images = look(config, parameters, data, "image", rows, disturbed);
  const auto texts = look(config, parameters, data, "text", candidates, disturbed);
  auto right = at::tensor(own, at::kLong).to(images.queries.device());
  if (disturbed) right = at::where(images.found, right, training::nearest_rows(images.queries, texts.queries));
  return training::accuracy(images.embeddings, texts.embeddings, right);
}

bool disturbs(const TrainingConfig& c) {
  return c.fusion.method != "mean" && c.wrong_captions + c.random_rows + c.dropped + c.random_k > 0;
}

// Of an accuracy on the held-out rows.
double standard_error(double accuracy, const Dataset& data) {
  std::size_t rows = 0;
  for (std::size_t i = 0; i < data.validation().size(); ++i) rows += data.validation()[i].size();
  return rows == 0 ? 0 : std::sqrt(accuracy * (1 - accuracy) / static_cast<double>(rows));
}

// The mean of accuracy with clean and with disturbed neighbours, where training disturbs any.
double validate_state(const TrainingConfig& config, const Parameters& parameters, const Dataset& data) {
  if (data.validation().empty()) return 0;
  const double clean = held_out_accuracy(config, parameters, data, false);
  return disturbs(config) ? (clean + held_out_accuracy(config, parameters, data, true)) / 2 : clean;
}

// On the CPU.
Parameters copy(const Parameters& parameters) {
  Parameters out;
  for (const auto& [name, value] : parameters) out[name] = value.detach().clone().cpu();
  return out;
}

State start(const TrainingConfig& config, Dataset& data, at::Device device) {
  State state;
  state.parameters = fusion::initialise(config.fusion, config.seed);
  training::learn_metric(config, state.parameters, data);
  if (config.fusion.method == "gated") training::start_from_mean(config, state.parameters, data);
  state.parameters[kScale] = at::full({}, std::log(config.logit_scale), at::kFloat);
  state.parameters = training::to(state.parameters, device);
  for (const auto& [name, value] : state.parameters) {
    if (!training::learns(config.fusion, name) || (name == kScale && !config.learn_scale)) continue;
    state.first[name] = at::zeros_like(value);
    state.second[name] = at::zeros_like(value);
  }
  state.best_validation = validate_state(config, state.parameters, data);
  state.best = copy(state.parameters);
  state.curve.push_back({0, 0, 0, state.best_validation});
  return state;
}

// Of epochs that chance could tell apart as well, the last is taken: the decaying learning rate settles what the first
// ones only sketch, and the best of many noisy figures is often an early one.
void finish_epoch(const TrainingConfig& config, const Dataset& data, State& state, double rate) {
  ++state.epoch;
  const c10::NoGradGuard no_grad;
  for (const auto& [name, value] : state.parameters) {
    check(at::isfinite(value).all().item<bool>(), "training.train", "the loss diverges: ", name,
          " is not finite after epoch ", state.epoch, "; lower learning_rate (", config.learning_rate, ")");
  }
  const double found = validate_state(config, state.parameters, data);
  const auto running = std::exchange(state.running, {});
  const auto loss = running.loss / static_cast<double>(running.batches);
  state.curve.push_back({state.epoch, rate, loss, found, running.data_seconds, running.step_seconds});
  state.best_validation = std::max(found, state.best_validation);
  if (found < state.best_validation - standard_error(state.best_validation, data)) return;
  state.best_epoch = state.epoch;
  state.best = copy(state.parameters);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void run_batch(const TrainingConfig& config, const Dataset& data, State& state, const std::vector<std::int64_t>& rows,
               double rate) {
  const auto start = std::chrono::steady_clock::now();
  const auto batch = training::to(disturb(config, data.rows(rows), state.step), device_of(state.parameters));
  const auto read = std::chrono::steady_clock::now();
  const double loss = step(config, state, batch, rate);
  // The first epoch's mean is the measure, so that a loss that explodes stops the run before hours are lost.
  const double limit = state.curve.size() > 1 ? 3 * state.curve[1].loss + 1 : std::numeric_limits<double>::max();
  check(loss < limit, "training.train", "the loss diverges: ", loss, " at step ", state.step, "; lower learning_rate (",
        config.learning_rate, ") or logit_scale (", config.logit_scale, ")");
  ++state.running.batches;
  state.running.loss += loss;
  state.running.step_seconds += seconds_since(read);
  state.running.data_seconds += std::chrono::duration<double>(read - start).count();
}

void run_epoch(const TrainingConfig& config, const Dataset& data, State& state, const std::string& identity) {
  const auto batches = data.epoch(config.seed, state.epoch, config.batch_size);
  const auto count = static_cast<std::int64_t>(batches.size()), steps = config.epochs * count;
  while (state.running.batches < count) {
    run_batch(config, data, state, batches[state.running.batches], training::rate(config, state.step, steps));
    const bool due = state.step % kStepsBetweenSaves == 0 && state.running.batches < count;
    if (due && !config.checkpoint.empty()) training::save(state, config.checkpoint, identity);
  }
  finish_epoch(config, data, state, training::rate(config, state.step - 1, steps));
}

void record(const TrainingConfig& config, const State& state, const std::string& identity) {
  // A checkpoint costs an fsync: twenty a run are enough.
  const bool due = state.epoch % std::max<std::int64_t>(1, config.epochs / 20) == 0 || state.epoch == config.epochs;
  if (!config.checkpoint.empty() && due) training::save(state, config.checkpoint, identity);
  if (!config.log.empty() && due) training::write_log(state, config.log);
  if (!config.tensorboard.empty() && due) training::write_tensorboard(state, config.tensorboard);
}

std::string provenance(const TrainingConfig& config, const State& state, const std::string& identity,
                       const MemoryBase& memory) {
  auto json = nlohmann::json::parse(identity);
  json["device"] = config.device;
  json["memory_rows"] = memory.size();
  json["best_epoch"] = state.best_epoch;
  json["validation_accuracy"] = state.curve.empty() ? state.best_validation : state.curve[state.best_epoch].validation;
  return json.dump();
}

Fusion result(const TrainingConfig& config, State& state, const std::string& identity, const MemoryBase& memory) {
  auto parameters = state.best;
  parameters.erase(kScale);
  return Fusion(std::make_shared<Fusion::Impl>(Fusion::Impl{config.fusion, std::move(parameters), memory.encoder(),
                                                            provenance(config, state, identity, memory)}));
}

Fusion train_mean(TrainingConfig config, const Dataset& data, const std::string& identity, const MemoryBase& memory) {
  const auto mean = training::tune_mean(config.fusion, data, true);
  config.fusion.k = mean.k;
  State state;
  for (const auto& [side, weights] : {std::pair{"image", mean.image}, std::pair{"text", mean.text}}) {
    state.best[fusion::prefix(config.fusion, side) + "weight"] = at::full({1}, weights.weight);
    state.best[fusion::prefix(config.fusion, side) + "sharpness"] = at::full({1}, weights.sharpness);
  }
  state.best_validation = validate_state(config, state.best, data);
  return result(config, state, identity, memory);
}

}  // namespace

void validate(const TrainingConfig& c) {
  validate(c.fusion);
  check_range(c.batch_size >= 2, "batch_size", "2 or more", static_cast<double>(c.batch_size));
  check_range(c.epochs >= 1, "epochs", "1 or more", static_cast<double>(c.epochs));
  check_range(c.learning_rate > 0 && c.learning_rate <= 1, "learning_rate", "above 0 and at most 1", c.learning_rate);
  check_range(c.layer_rate >= 0 && c.layer_rate <= 10, "layer_rate", "from 0 to 10", c.layer_rate);
  check_range(c.gate_rate >= 0 && c.gate_rate <= 1000, "gate_rate", "from 0 to 1,000", c.gate_rate);
  check_range(c.micro_batch >= 0, "micro_batch", "0 or more", static_cast<double>(c.micro_batch));
  for (const auto& [name, share] :
       {std::pair{"wrong_captions", c.wrong_captions}, std::pair{"random_rows", c.random_rows},
        std::pair{"dropped", c.dropped}, std::pair{"random_k", c.random_k}}) {
    check_range(share >= 0 && share <= 1, name, "from 0 to 1", share);
  }
  check_range(c.shrinkage > 0 && c.shrinkage <= 1e6, "shrinkage", "above 0 and at most 1,000,000", c.shrinkage);
  check_range(c.warmup >= 0 && c.warmup <= 1, "warmup", "from 0 to 1", c.warmup);
  check_range(c.weight_decay >= 0 && c.weight_decay <= 10, "weight_decay", "from 0 to 10", c.weight_decay);
  for (const double weight : c.loss) check_range(weight >= 0 && std::isfinite(weight), "loss", "weights >= 0", weight);
  check_range(c.loss[0] + c.loss[1] + c.loss[2] > 0, "loss", "above 0 in one term at least", 0);
  check_range(c.logit_scale > 0 && c.logit_scale <= 1e4, "logit_scale", "above 0 and at most 10,000", c.logit_scale);
  check(c.precision == "float32" || c.precision == "bfloat16", "training.validate",
        "precision must be one of 'float32', 'bfloat16', got '", c.precision, "'");
  check_device_name(c.device, "training.validate");
  check_range(c.validation >= 0 && c.validation < 1, "validation", "at least 0 and below 1", c.validation);
}

namespace {

Fusion train_on(const TrainingData& pairs, const MemoryBase& memory, const TrainingConfig& config,
                const Progress& progress, at::Device device) {
  training::check_data(pairs, memory, config);
  const auto identity = training::identity(config, pairs, memory.encoder());
  const bool resumed = !config.checkpoint.empty() && std::filesystem::exists(config.checkpoint);
  if (resumed) training::check_run(config.checkpoint, identity);  // before hours of searching
  Dataset data(pairs, memory, config, {});
  const c10::AutoGradMode with_gradients(true);
  if (config.fusion.method == "mean") {
    data.discard_neighbors();  // of use until it goes out of scope
    return train_mean(config, data, identity, memory);
  }
  auto state = start(config, data, device);
  if (resumed) training::resume(state, config.checkpoint, identity);
  data.compare_with(state.parameters);
  while (state.epoch < config.epochs) {
    run_epoch(config, data, state, identity);
    record(config, state, identity);
    check(!progress || progress(state.epoch, config.epochs), "interrupted", "training stopped after epoch ",
          state.epoch, " of ", config.epochs);
  }
  data.discard_neighbors();
  return result(config, state, identity, memory);
}

}  // namespace

Fusion train(const TrainingData& pairs, const MemoryBase& memory, const TrainingConfig& config,
             const Progress& progress) {
  constexpr const char* tag = "training.train";
  validate(config);
  const auto device = parse_device(config.device, tag);
  at::set_num_threads(threads());
  try {
    return train_on(pairs, memory, config, progress, device);
  } catch (const c10::Error& error) {
    fail(tag, "LibTorch: ", error.what_without_backtrace());
  }
}

}  // namespace reco
