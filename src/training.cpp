// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "reco/error.h"
#include "reco/threads.h"
#include "training_data.h"
#include "training_state.h"

namespace reco {

namespace {

using training::Dataset;
using training::Pairs;
using training::State;

constexpr const char* kScale = "logit_scale";
constexpr std::int64_t kTuningConcepts = 768;  // as many queries and candidates for the choice of the mean

void check_range(bool condition, const char* field, const char* expected, double found) {
  check(condition, "training.validate", field, " must be ", expected, ", got ", found);
}

// One row of each concept, at most `most` of them.
std::vector<std::int64_t> first_rows(const std::vector<std::vector<std::int64_t>>& concepts, std::size_t most) {
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i < std::min(concepts.size(), most); ++i) rows.push_back(concepts[i].back());
  return rows;
}

std::vector<std::int64_t> places(std::size_t count, std::size_t first = 0) {
  std::vector<std::int64_t> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>(first + i);
  return out;
}

struct Choice {
  MeanWeights weights;
  at::Tensor embeddings;
};

// The same rows refined by each mean of the grid.
std::vector<Choice> means(const std::string& side, const fusion::Batch& batch) {
  FusionConfig config{.method = "mean", .dim = batch.queries.size(1), .layers = 0, .heads = 1};
  std::vector<Choice> out;
  for (const float weight : {0.0F, 0.25F, 0.5F, 1.0F, 2.0F, 4.0F, 8.0F}) {
    for (const float sharpness : {0.0F, 10.0F, 30.0F, 100.0F}) {
      if (weight == 0.0F && sharpness > 0.0F) continue;
      const Parameters parameters{{side + ".weight", at::full({1}, weight)},
                                  {side + ".sharpness", at::full({1}, sharpness)}};
      out.push_back({{weight, sharpness}, fusion::fuse(config, parameters, side, batch).embeddings});
    }
  }
  return out;
}

// The mean with the best accuracy on training concepts.
std::pair<MeanWeights, MeanWeights> tune_mean(const Dataset& data) {
  const auto rows = first_rows(data.train(), kTuningConcepts);
  const auto pairs = data.rows(rows);
  const auto images = means("image", pairs.images);
  const auto texts = means("text", pairs.texts);
  const auto own = places(rows.size());
  double best = -1;
  std::pair<MeanWeights, MeanWeights> winner;
  for (const auto& image : images) {
    for (const auto& text : texts) {
      const double found = training::accuracy(image.embeddings, text.embeddings, own);
      if (found > best) std::tie(best, winner) = std::tuple{found, std::pair{image.weights, text.weights}};
    }
  }
  return winner;
}

void set_standard(Parameters& parameters, const std::string& name, const at::Tensor& features) {
  const auto flat = features.reshape({-1, features.size(-1)});
  parameters[name + ".mean"] = flat.mean(0);
  parameters[name + ".std"] = flat.std(0).clamp_min(1e-3);
}

// Starts a gated fusion at the best mean, its features standardised over the training rows.
void start_from_mean(Parameters& parameters, const Dataset& data, const std::pair<MeanWeights, MeanWeights>& mean) {
  const auto pairs = data.rows(first_rows(data.train(), kTuningConcepts));
  for (const bool image : {true, false}) {
    const std::string side = image ? "image" : "text";
    const auto& weights = image ? mean.first : mean.second;
    // A weight of zero could not grow through the gate, which multiplies it.
    parameters[side + ".weight"].fill_(std::max(weights.weight, 0.05F));
    parameters[side + ".sharpness"].fill_(weights.sharpness);
    const auto [neighbor, query] = fusion::features(parameters, side, image ? pairs.images : pairs.texts);
    const auto present = (image ? pairs.images : pairs.texts).mask;
    set_standard(parameters, side + ".neighbor", neighbor.masked_select(present.unsqueeze(2)).view({-1, 4}));
    set_standard(parameters, side + ".gate", query);
  }
}

// InfoNCE in both directions (van den Oord et al., arXiv 1807.03748; CLIP's symmetric form).
at::Tensor nce(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale) {
  const auto logits = at::matmul(a * scale, b.t());
  const auto own = at::arange(a.size(0), at::kLong);
  return (at::cross_entropy_loss(logits, own) + at::cross_entropy_loss(logits.t(), own)) / 2;
}

at::Tensor loss_of(const TrainingConfig& config, const Parameters& parameters, const Pairs& pairs) {
  const auto images = fusion::fuse(config.fusion, parameters, "image", pairs.images).embeddings;
  const auto texts = fusion::fuse(config.fusion, parameters, "text", pairs.texts).embeddings;
  const auto scale = parameters.at(kScale).exp();
  auto loss = at::zeros({});
  if (config.loss[0] > 0) loss = loss + config.loss[0] * nce(images, texts, scale);
  if (config.loss[1] > 0) loss = loss + config.loss[1] * nce(images, pairs.texts.queries, scale);
  if (config.loss[2] > 0) loss = loss + config.loss[2] * nce(pairs.images.queries, texts, scale);
  return loss;
}

// Learning rate at a step: linear warm-up, then a cosine to zero.
double rate(const TrainingConfig& config, std::int64_t step, std::int64_t steps) {
  const double warm = std::max(1.0, config.warmup * static_cast<double>(steps));
  const double at = static_cast<double>(step);
  if (at < warm) return config.learning_rate * (at + 1) / warm;
  const double done = (at - warm) / std::max(1.0, static_cast<double>(steps) - warm);
  return config.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * std::min(done, 1.0)));
}

bool in_layer(const std::string& name) { return name.find(".layers.") != std::string::npos; }

// One AdamW step (Loshchilov & Hutter, arXiv 1711.05101) over the gradients that are chosen.
void adamw(State& state, const std::map<std::string, at::Tensor>& gradients, double rate, double decay,
           const std::function<bool(const std::string&, const at::Tensor&)>& chosen) {
  std::vector<at::Tensor> values, slopes, first, second, steps;
  for (const auto& [name, gradient] : gradients) {
    if (!chosen(name, gradient)) continue;
    values.push_back(state.parameters.at(name));
    slopes.push_back(gradient);
    first.push_back(state.first.at(name));
    second.push_back(state.second.at(name));
    steps.push_back(at::full({}, static_cast<double>(state.step + 1), at::kFloat));
  }
  if (values.empty()) return;
  at::_fused_adamw_(values, slopes, first, second, {}, steps, rate, 0.9, 0.98, decay, 1e-8, false, false);
}

// Does one step and returns its loss.
double step(const TrainingConfig& config, State& state, const Pairs& pairs, double rate) {
  Parameters leaves = state.parameters;
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
  for (auto& [name, value] : leaves) {
    if (!state.first.contains(name)) continue;
    value = value.detach().requires_grad_(true);
    names.push_back(name);
    inputs.push_back(value);
  }
  const auto loss = loss_of(config, leaves, pairs);
  const auto gradients = torch::autograd::grad({loss}, inputs, {}, std::nullopt, false, true);
  std::map<std::string, at::Tensor> slopes;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (gradients[i].defined()) slopes[names[i]] = gradients[i].contiguous();
  }
  const c10::NoGradGuard no_grad;
  const bool gated = config.fusion.method == "gated";
  for (const bool layers : {true, false}) {
    for (const bool matrices : {true, false}) {
      adamw(state, slopes, rate * (gated && layers ? config.layer_rate : 1.0), matrices ? config.weight_decay : 0.0,
            [&](const std::string& name, const at::Tensor& gradient) {
              return in_layer(name) == layers && (gradient.dim() > 1) == matrices;
            });
    }
  }
  ++state.step;
  return loss.item<double>();
}

// Held-out accuracy: one row of each held-out concept, all concepts' texts as candidates.
double validate_state(const TrainingConfig& config, const Parameters& parameters, const Dataset& data) {
  if (data.validation().empty()) return 0;
  auto candidates = first_rows(data.train(), kTuningConcepts);
  const auto known = candidates.size();
  const auto held = first_rows(data.validation(), data.validation().size());
  candidates.insert(candidates.end(), held.begin(), held.end());
  const auto texts = fusion::fuse(config.fusion, parameters, "text", data.rows(candidates).texts).embeddings;
  std::vector<std::int64_t> rows, own;
  for (std::size_t i = 0; i < data.validation().size(); ++i) {
    for (const auto row : data.validation()[i]) {
      rows.push_back(row);
      own.push_back(static_cast<std::int64_t>(known + i));
    }
  }
  const auto images = fusion::fuse(config.fusion, parameters, "image", data.rows(rows).images).embeddings;
  return training::accuracy(images, texts, own);
}

Parameters copy(const Parameters& parameters) {
  Parameters out;
  for (const auto& [name, value] : parameters) out[name] = value.detach().clone();
  return out;
}

State start(const TrainingConfig& config, const Dataset& data) {
  State state;
  state.parameters = fusion::initialise(config.fusion, config.seed);
  if (config.fusion.method == "gated") start_from_mean(state.parameters, data, tune_mean(data));
  state.parameters[kScale] = at::full({}, std::log(config.logit_scale), at::kFloat);
  for (const auto& [name, value] : state.parameters) {
    if (!training::learns(name) || (name == kScale && !config.learn_scale)) continue;
    state.first[name] = at::zeros_like(value);
    state.second[name] = at::zeros_like(value);
  }
  state.best_validation = validate_state(config, state.parameters, data);
  state.best = copy(state.parameters);
  state.curve.push_back({0, 0, 0, state.best_validation});
  return state;
}

void finish_epoch(const TrainingConfig& config, const Dataset& data, State& state, double rate, double loss) {
  ++state.epoch;
  const c10::NoGradGuard no_grad;
  const double found = validate_state(config, state.parameters, data);
  state.curve.push_back({state.epoch, rate, loss, found});
  if (found < state.best_validation || (found == state.best_validation && !data.validation().empty())) return;
  state.best_validation = found;
  state.best_epoch = state.epoch;
  state.best = copy(state.parameters);
}

void run_epoch(const TrainingConfig& config, const Dataset& data, State& state) {
  const auto batches = data.epoch(config.seed, state.epoch, config.batch_size);
  const auto steps = config.epochs * static_cast<std::int64_t>(batches.size());
  double sum = 0, current = 0;
  for (const auto& rows : batches) {
    current = rate(config, state.step, steps);
    const double loss = step(config, state, data.rows(rows), current);
    check(std::isfinite(loss), "training.train", "the loss is not finite at step ", state.step,
          ": lower learning_rate (", config.learning_rate, ") or logit_scale (", config.logit_scale, ")");
    sum += loss;
  }
  finish_epoch(config, data, state, current, sum / static_cast<double>(batches.size()));
}

void record(const TrainingConfig& config, const State& state, const std::string& identity) {
  // A checkpoint costs an fsync: twenty a run are enough.
  const bool due = state.epoch % std::max<std::int64_t>(1, config.epochs / 20) == 0 || state.epoch == config.epochs;
  if (!config.checkpoint.empty() && due) training::save(state, config.checkpoint, identity);
  if (!config.log.empty() && due) training::write_log(state, config.log);
}

std::string provenance(const State& state, const std::string& identity, const Memory& memory) {
  auto json = nlohmann::json::parse(identity);
  json["memory_rows"] = memory.size();
  json["best_epoch"] = state.best_epoch;
  json["validation_accuracy"] = state.best_validation;
  return json.dump();
}

Fusion result(const TrainingConfig& config, State& state, const std::string& identity, const Memory& memory) {
  auto parameters = state.best;
  parameters.erase(kScale);
  return Fusion(std::make_shared<Fusion::Impl>(
      Fusion::Impl{config.fusion, std::move(parameters), memory.encoder(), provenance(state, identity, memory)}));
}

Fusion train_mean(const TrainingConfig& config, const Dataset& data, const std::string& identity,
                  const Memory& memory) {
  const auto [image, text] = tune_mean(data);
  State state;
  const auto mean = Fusion::mean(config.fusion.dim, image, text);
  state.best = mean.impl().parameters;
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
  check_range(c.warmup >= 0 && c.warmup <= 1, "warmup", "from 0 to 1", c.warmup);
  check_range(c.weight_decay >= 0 && c.weight_decay <= 10, "weight_decay", "from 0 to 10", c.weight_decay);
  for (const double weight : c.loss) check_range(weight >= 0 && std::isfinite(weight), "loss", "weights >= 0", weight);
  check_range(c.loss[0] + c.loss[1] + c.loss[2] > 0, "loss", "above 0 in one term at least", 0);
  check_range(c.logit_scale > 0 && c.logit_scale <= 1e4, "logit_scale", "above 0 and at most 10,000", c.logit_scale);
  check_range(c.validation >= 0 && c.validation < 1, "validation", "at least 0 and below 1", c.validation);
}

Fusion train(const TrainingData& pairs, const Memory& memory, const TrainingConfig& config, const Progress& progress) {
  validate(config);
  at::set_num_threads(threads());
  const auto identity = training::identity(config, pairs.images.rows(), memory.encoder());
  const Dataset data(pairs, memory, config, {});
  const c10::AutoGradMode with_gradients(true);
  if (config.fusion.method == "mean") return train_mean(config, data, identity, memory);
  auto state = start(config, data);
  if (!config.checkpoint.empty() && std::filesystem::exists(config.checkpoint)) {
    training::resume(state, config.checkpoint, identity);
  }
  while (state.epoch < config.epochs) {
    run_epoch(config, data, state);
    record(config, state, identity);
    check(!progress || progress(state.epoch, config.epochs), "interrupted", "training stopped after epoch ",
          state.epoch, " of ", config.epochs);
  }
  return result(config, state, identity, memory);
}

}  // namespace reco
