// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>

#include "fusion_gate.h"
#include "reco/error.h"
#include "reco/interrupt.h"
#include "reco/threads.h"
#include "training_corruption.h"
#include "training_state.h"

namespace reco {

namespace {

using training::Dataset;
using training::disturb;
using training::Disturbed;
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

// The same rows refined by each mean of the grid; by CLIP alone on a side that is not refined.
std::vector<Choice> means(const FusionConfig& fusion, const std::string& side, const fusion::Batch& batch) {
  FusionConfig config{.method = "mean", .dim = batch.queries.size(1), .layers = 0, .heads = 1};
  std::vector<Choice> out;
  for (const float weight : {0.0F, 0.25F, 0.5F, 1.0F, 2.0F, 4.0F, 8.0F}) {
    for (const float sharpness : {0.0F, 10.0F, 30.0F, 100.0F}) {
      if (weight == 0.0F && sharpness > 0.0F) continue;
      if (weight > 0.0F && !fusion::refines(fusion, side)) continue;
      const Parameters parameters{{side + ".weight", at::full({1}, weight)},
                                  {side + ".sharpness", at::full({1}, sharpness)}};
      out.push_back({{weight, sharpness}, fusion::fuse(config, parameters, side, batch).embeddings});
    }
  }
  return out;
}

bool equal(const MeanWeights& a, const MeanWeights& b) { return a.weight == b.weight && a.sharpness == b.sharpness; }

// The mean with the best accuracy on training concepts.
std::pair<MeanWeights, MeanWeights> tune_mean(const FusionConfig& config, const Dataset& data) {
  const auto rows = first_rows(data.train(), kTuningConcepts);
  const auto pairs = data.rows(rows);
  const auto images = means(config, "image", pairs.images);
  const auto texts = means(config, "text", pairs.texts);
  const auto own = places(rows.size());
  double best = -1;
  std::pair<MeanWeights, MeanWeights> winner;
  for (const auto& image : images) {
    for (const auto& text : texts) {
      if (config.shared && !equal(image.weights, text.weights)) continue;
      const double found = training::accuracy(image.embeddings, text.embeddings, own);
      if (found > best) std::tie(best, winner) = std::tuple{found, std::pair{image.weights, text.weights}};
    }
  }
  return winner;
}

void set_standard(Parameters& parameters, const std::string& name, const at::Tensor& features) {
  const auto flat = features.reshape({-1, features.size(-1)});
  if (flat.size(0) < 2) return;  // next to nothing was retrieved: as they come
  parameters[name + ".mean"] = flat.mean(0);
  parameters[name + ".std"] = flat.std(0).clamp_min(1e-3);
}

// Starts a gated fusion at the best mean, its features standardised over disturbed training rows.
void start_from_mean(const TrainingConfig& config, Parameters& parameters, const Dataset& data) {
  const auto mean = tune_mean(config.fusion, data);
  const auto rows = disturb(config, data.rows(first_rows(data.train(), kTuningConcepts)), ~0ULL).pairs;
  for (const bool image : {true, false}) {
    const std::string side = image ? "image" : "text";
    if (!fusion::refines(config.fusion, side)) continue;
    const auto prefix = fusion::prefix(config.fusion, side);
    const auto& weights = image ? mean.first : mean.second;
    // A weight of zero would leave nothing to learn.
    parameters[prefix + "weight"].fill_(std::max(weights.weight, 0.05F));
    parameters[prefix + "sharpness"].fill_(weights.sharpness);
    const auto& batch = image ? rows.images : rows.texts;
    const auto seen = fusion::features(fusion::Side(config.fusion, parameters, side), batch);
    const auto present = seen.neighbor.masked_select(batch.mask.unsqueeze(2));
    set_standard(parameters, prefix + "neighbor", present.view({-1, fusion::kNeighborFeatures}));
    set_standard(parameters, prefix + "query", seen.query);
  }
}

// InfoNCE in both directions (van den Oord et al., arXiv 1807.03748; CLIP's symmetric form).
at::Tensor nce(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale) {
  const auto logits = at::matmul(a * scale, b.t());
  const auto own = at::arange(a.size(0), at::kLong);
  return (at::cross_entropy_loss(logits, own) + at::cross_entropy_loss(logits.t(), own)) / 2;
}

at::Tensor contrast(const TrainingConfig& config, const at::Tensor& images, const at::Tensor& texts, const Pairs& pairs,
                    const at::Tensor& log_scale) {
  const auto scale = log_scale.exp();
  auto loss = at::zeros({});
  if (config.loss[0] > 0) loss = loss + config.loss[0] * nce(images, texts, scale);
  if (config.loss[1] > 0) loss = loss + config.loss[1] * nce(images, pairs.texts.queries, scale);
  if (config.loss[2] > 0) loss = loss + config.loss[2] * nce(pairs.images.queries, texts, scale);
  return loss;
}

// What the labels say of trust and confidence, as a share of the sum over all n queries with `present` neighbours:
// cross-entropy of each neighbour being true, and of any being true.
at::Tensor label_loss(const fusion::Fused& fused, const at::Tensor& mask, const at::Tensor& truth, double n,
                      double present) {
  if (!fused.trust_logits.defined()) return at::zeros({});
  const auto any = std::get<0>(truth.max(1));
  const auto sum = at::Reduction::Sum;
  const auto trust = at::binary_cross_entropy_with_logits(fused.trust_logits, truth, mask.to(at::kFloat), {}, sum);
  const auto confidence = at::binary_cross_entropy_with_logits(fused.confidence_logits, any, {}, {}, sum);
  return trust / present + confidence / n;
}

// Half of a batch: one side's queries with their labels.
struct Half {
  const char* side;
  const fusion::Batch& batch;
  const at::Tensor& truth;

  std::int64_t size() const { return truth.size(0); }
  fusion::Batch part(std::int64_t first, std::int64_t count) const {
    return {batch.queries.narrow(0, first, count), batch.partners.narrow(0, first, count),
            batch.scores.narrow(0, first, count), batch.mask.narrow(0, first, count)};
  }
};

struct Refined {
  at::Tensor embeddings;
  at::Tensor label_loss;
};

Refined refine(const TrainingConfig& config, const Parameters& parameters, const Half& half, std::int64_t first,
               std::int64_t count) {
  check_interrupt();
  const auto part = half.part(first, count);
  const auto fused = fusion::fuse(config.fusion, parameters, half.side, part);
  const double present = std::max(1.0, half.batch.mask.sum().item<double>());
  return {fused.embeddings,
          label_loss(fused, part.mask, half.truth.narrow(0, first, count), static_cast<double>(half.size()), present)};
}

// The weights that learn, as leaves of the graph.
struct Leaves {
  Parameters all;
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
};

Leaves leaves_of(const State& state) {
  Leaves out{state.parameters, {}, {}};
  for (auto& [name, value] : out.all) {
    if (!state.first.contains(name)) continue;
    value = value.detach().requires_grad_(true);
    out.names.push_back(name);
    out.inputs.push_back(value);
  }
  return out;
}

using Gradients = std::map<std::string, at::Tensor>;

void add_gradients(const at::Tensor& loss, const Leaves& leaves, Gradients& sum) {
  if (!loss.requires_grad()) return;
  const auto found = torch::autograd::grad({loss}, leaves.inputs, {}, std::nullopt, false, true);
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i].defined()) continue;
    auto& total = sum[leaves.names[i]];
    total = total.defined() ? total + found[i] : found[i].contiguous();
  }
}

// Embeddings of one half without a graph, chunk by chunk.
at::Tensor embed(const TrainingConfig& config, const Parameters& parameters, const Half& half) {
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (std::int64_t first = 0; first < half.size(); first += config.micro_batch) {
    const auto count = std::min(config.micro_batch, half.size() - first);
    parts.push_back(refine(config, parameters, half, first, count).embeddings);
  }
  return at::cat(parts);
}

// Gradients through one half, given those of the loss with respect to its embeddings; returns its label loss.
double backward(const TrainingConfig& config, const Leaves& leaves, const Half& half, const at::Tensor& slope,
                Gradients& sum) {
  double labels = 0;
  for (std::int64_t first = 0; first < half.size(); first += config.micro_batch) {
    const auto count = std::min(config.micro_batch, half.size() - first);
    const auto part = refine(config, leaves.all, half, first, count);
    labels += part.label_loss.item<double>();
    add_gradients((part.embeddings * slope.narrow(0, first, count)).sum() + part.label_loss, leaves, sum);
  }
  return labels;
}

// The whole batch's contrastive loss with the graph of one chunk at a time (GradCache, arXiv 2101.06983).
double cached_gradients(const TrainingConfig& config, const Leaves& leaves, const Pairs& pairs, const Half& images,
                        const Half& texts, Gradients& sum) {
  const auto image = embed(config, leaves.all, images).requires_grad_(true);
  const auto text = embed(config, leaves.all, texts).requires_grad_(true);
  const auto& scale = leaves.all.at(kScale);
  const auto loss = contrast(config, image, text, pairs, scale);
  std::vector<at::Tensor> inputs{image, text};
  if (scale.requires_grad()) inputs.push_back(scale);
  const auto slopes = torch::autograd::grad({loss}, inputs, {}, std::nullopt, false, true);
  if (scale.requires_grad()) sum[kScale] = slopes[2].contiguous();
  double total = loss.item<double>();
  if (slopes[0].defined()) total += backward(config, leaves, images, slopes[0], sum);
  if (slopes[1].defined()) total += backward(config, leaves, texts, slopes[1], sum);
  return total;
}

double gradients(const TrainingConfig& config, const Leaves& leaves, const Disturbed& batch, Gradients& sum) {
  const Half images{"image", batch.pairs.images, batch.image_truth}, texts{"text", batch.pairs.texts, batch.text_truth};
  const auto n = images.size();
  if (config.micro_batch > 0 && config.micro_batch < n) {
    return cached_gradients(config, leaves, batch.pairs, images, texts, sum);
  }
  const auto image = refine(config, leaves.all, images, 0, n), text = refine(config, leaves.all, texts, 0, n);
  const auto loss = contrast(config, image.embeddings, text.embeddings, batch.pairs, leaves.all.at(kScale)) +
                    image.label_loss + text.label_loss;
  add_gradients(loss, leaves, sum);
  return loss.item<double>();
}

// Learning rate at a step: linear warm-up, then a cosine to zero.
double rate(const TrainingConfig& config, std::int64_t step, std::int64_t steps) {
  const double warm = std::max(1.0, config.warmup * static_cast<double>(steps));
  const double at = static_cast<double>(step);
  if (at < warm) return config.learning_rate * (at + 1) / warm;
  const double done = (at - warm) / std::max(1.0, static_cast<double>(steps) - warm);
  return config.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * std::min(done, 1.0)));
}

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

// The share of the learning rate that a weight gets.
double share(const TrainingConfig& config, const std::string& name) {
  if (config.fusion.method != "gated") return 1.0;
  if (has(name, ".layers.") || has(name, ".similarity")) return config.layer_rate;
  return has(name, ".trust.") || has(name, ".confidence.") ? config.gate_rate : 1.0;
}

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
double step(const TrainingConfig& config, State& state, const Disturbed& batch, double rate) {
  Gradients slopes;
  const double loss = gradients(config, leaves_of(state), batch, slopes);
  const c10::NoGradGuard no_grad;
  for (const double part : std::set<double>{1.0, config.layer_rate, config.gate_rate}) {
    for (const bool matrices : {true, false}) {
      adamw(state, slopes, rate * part, matrices ? config.weight_decay : 0.0,
            [&](const std::string& name, const at::Tensor& gradient) {
              return share(config, name) == part && (gradient.dim() > 1) == matrices;
            });
    }
  }
  ++state.step;
  return loss;
}

// Held-out accuracy: one row of each held-out concept, all concepts' texts as candidates.
double held_out_accuracy(const TrainingConfig& config, const Parameters& parameters, const Dataset& data,
                         bool disturbed) {
  auto candidates = first_rows(data.train(), kTuningConcepts);
  const auto known = candidates.size();
  const auto held = first_rows(data.validation(), data.validation().size());
  candidates.insert(candidates.end(), held.begin(), held.end());
  std::vector<std::int64_t> rows, own;
  for (std::size_t i = 0; i < data.validation().size(); ++i) {
    for (const auto row : data.validation()[i]) {
      rows.push_back(row);
      own.push_back(static_cast<std::int64_t>(known + i));
    }
  }
  const auto refined = [&](const char* side, const std::vector<std::int64_t>& wanted) {
    auto pairs = data.rows(wanted);
    if (disturbed) pairs = disturb(config, pairs, ~1ULL, true).pairs;
    return fusion::fuse(config.fusion, parameters, side, side[0] == 'i' ? pairs.images : pairs.texts).embeddings;
  };
  return training::accuracy(refined("image", rows), refined("text", candidates), own);
}

bool disturbs(const TrainingConfig& c) {
  return c.fusion.method != "mean" && c.wrong_captions + c.random_rows + c.dropped + c.random_k > 0;
}

// The mean of accuracy with clean and with disturbed neighbours, where training disturbs any.
double validate_state(const TrainingConfig& config, const Parameters& parameters, const Dataset& data) {
  if (data.validation().empty()) return 0;
  const double clean = held_out_accuracy(config, parameters, data, false);
  return disturbs(config) ? (clean + held_out_accuracy(config, parameters, data, true)) / 2 : clean;
}

Parameters copy(const Parameters& parameters) {
  Parameters out;
  for (const auto& [name, value] : parameters) out[name] = value.detach().clone();
  return out;
}

State start(const TrainingConfig& config, const Dataset& data) {
  State state;
  state.parameters = fusion::initialise(config.fusion, config.seed);
  if (config.fusion.method == "gated") start_from_mean(config, state.parameters, data);
  state.parameters[kScale] = at::full({}, std::log(config.logit_scale), at::kFloat);
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
    const double loss = step(config, state, disturb(config, data.rows(rows), state.step), current);
    // The first epoch's mean is the measure, so that a loss that explodes stops the run before hours are lost.
    const double limit = state.curve.size() > 1 ? 3 * state.curve[1].loss + 1 : std::numeric_limits<double>::max();
    check(loss < limit, "training.train", "the loss diverges: ", loss, " at step ", state.step,
          "; lower learning_rate (", config.learning_rate, ") or logit_scale (", config.logit_scale, ")");
    sum += loss;
  }
  finish_epoch(config, data, state, current, sum / static_cast<double>(batches.size()));
}

void record(const TrainingConfig& config, const State& state, const std::string& identity) {
  // A checkpoint costs an fsync: twenty a run are enough.
  const bool due = state.epoch % std::max<std::int64_t>(1, config.epochs / 20) == 0 || state.epoch == config.epochs;
  if (!config.checkpoint.empty() && due) training::save(state, config.checkpoint, identity);
  if (!config.log.empty() && due) training::write_log(state, config.log);
  if (!config.tensorboard.empty() && due) training::write_tensorboard(state, config.tensorboard);
}

std::string provenance(const State& state, const std::string& identity, const MemoryBase& memory) {
  auto json = nlohmann::json::parse(identity);
  json["memory_rows"] = memory.size();
  json["best_epoch"] = state.best_epoch;
  json["validation_accuracy"] = state.best_validation;
  return json.dump();
}

Fusion result(const TrainingConfig& config, State& state, const std::string& identity, const MemoryBase& memory) {
  auto parameters = state.best;
  parameters.erase(kScale);
  return Fusion(std::make_shared<Fusion::Impl>(
      Fusion::Impl{config.fusion, std::move(parameters), memory.encoder(), provenance(state, identity, memory)}));
}

Fusion train_mean(const TrainingConfig& config, const Dataset& data, const std::string& identity,
                  const MemoryBase& memory) {
  const auto [image, text] = tune_mean(config.fusion, data);
  State state;
  for (const auto& [side, weights] : {std::pair{"image", image}, std::pair{"text", text}}) {
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
  check_range(c.warmup >= 0 && c.warmup <= 1, "warmup", "from 0 to 1", c.warmup);
  check_range(c.weight_decay >= 0 && c.weight_decay <= 10, "weight_decay", "from 0 to 10", c.weight_decay);
  for (const double weight : c.loss) check_range(weight >= 0 && std::isfinite(weight), "loss", "weights >= 0", weight);
  check_range(c.loss[0] + c.loss[1] + c.loss[2] > 0, "loss", "above 0 in one term at least", 0);
  check_range(c.logit_scale > 0 && c.logit_scale <= 1e4, "logit_scale", "above 0 and at most 10,000", c.logit_scale);
  check_range(c.validation >= 0 && c.validation < 1, "validation", "at least 0 and below 1", c.validation);
}

Fusion train(const TrainingData& pairs, const MemoryBase& memory, const TrainingConfig& config,
             const Progress& progress) {
  validate(config);
  at::set_num_threads(threads());
  const auto identity =
      training::identity(config, pairs.pairs ? pairs.pairs->size() : pairs.images.rows(), memory.encoder());
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
