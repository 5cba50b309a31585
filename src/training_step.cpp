// SPDX-License-Identifier: Apache-2.0
#include "training_step.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <set>
#include <utility>

#include "reco/interrupt.h"

namespace reco::training {

namespace {

// The contrastive loss, and its slopes along both sides' refined embeddings and the logarithm of the factor on cosines.
struct Contrast {
  double loss;
  at::Tensor images, texts, log_scale;
  at::Tensor logits{}, slope{};  // [n, n]: made once a step, since fresh memory costs more than filling it
};

constexpr std::int64_t kRowsAtOnce = 64;  // of these, so that several passes over them stay in the cache

std::int64_t rows_of_block(const at::Tensor& matrix) { return matrix.is_cpu() ? kRowsAtOnce : matrix.size(0); }

// work(place, first, count) for every block of rows, on all threads at once: an operation that wakes them by itself
// costs more than it does.
template <typename Work>
void over_blocks(const at::Tensor& matrix, const Work& work) {
  const auto rows = matrix.size(0), size = rows_of_block(matrix);
  at::parallel_for(0, (rows + size - 1) / size, 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) work(i, i * size, std::min(size, rows - i * size));
  });
}

// Logarithms of the sums of exp(logits) along rows [n, 1] and along columns [1, n].
std::pair<at::Tensor, at::Tensor> log_sums(const at::Tensor& logits) {
  const auto rows = at::empty({logits.size(0), 1}, logits.options());
  const auto size = rows_of_block(logits);
  const auto columns = at::empty({(logits.size(0) + size - 1) / size, logits.size(1)}, logits.options());
  over_blocks(logits, [&](std::int64_t i, std::int64_t first, std::int64_t count) {
    const auto block = logits.narrow(0, first, count);
    auto along_rows = rows.narrow(0, first, count), along_columns = columns.narrow(0, i, 1);
    at::logsumexp_out(along_rows, block, {1}, true);
    at::logsumexp_out(along_columns, block, {0}, true);
  });
  return {rows, columns.logsumexp({0}, true)};
}

// Adds `weight` times InfoNCE in both directions (van den Oord et al., arXiv 1807.03748; CLIP's symmetric form), a's
// rows against b's. Of the matrix of all pairs two copies are made, where differentiation by LibTorch makes eight:
// the slope along a logit is the sum of its two softmaxes, less two on the diagonal, over 2 n.
void add_nce(double weight, const at::Tensor& a, const at::Tensor& b, double scale, Contrast& sum, at::Tensor* slope_a,
             at::Tensor* slope_b) {
  if (weight == 0) return;
  const double share = weight / (2.0 * static_cast<double>(a.size(0)));
  auto &logits = sum.logits, &slope = sum.slope;
  at::mm_out(logits, a * scale, b.t());
  const auto [rows, columns] = log_sums(logits);
  sum.loss -= share * (2 * logits.diagonal().sum() - rows.sum() - columns.sum()).item<double>();
  over_blocks(logits, [&, rows = rows, columns = columns](std::int64_t, std::int64_t first, std::int64_t count) {
    const auto block = logits.narrow(0, first, count);
    auto out = slope.narrow(0, first, count);
    at::sub_out(out, block, rows.narrow(0, first, count)).exp_().add_(at::sub(block, columns).exp_());
  });
  slope.diagonal().sub_(2);
  if (slope_a != nullptr) slope_a->addmm_(slope, b, 1, share * scale);
  if (slope_b != nullptr) slope_b->addmm_(slope.t(), a, 1, share * scale);
  if (sum.log_scale.defined()) sum.log_scale += share * (slope * logits).sum();
}

Contrast contrast(const TrainingConfig& config, const at::Tensor& images, const at::Tensor& texts, const Pairs& pairs,
                  const at::Tensor& log_scale) {
  const c10::NoGradGuard no_grad;
  Contrast sum{0, at::zeros_like(images), at::zeros_like(texts), {}};
  for (auto* matrix : {&sum.logits, &sum.slope}) {
    *matrix = at::empty({images.size(0), texts.size(0)}, images.options());
  }
  if (config.learn_scale) sum.log_scale = at::zeros_like(log_scale);
  const double scale = log_scale.exp().item<double>();
  add_nce(config.loss[0], images, texts, scale, sum, &sum.images, &sum.texts);
  add_nce(config.loss[1], images, pairs.texts.queries, scale, sum, &sum.images, nullptr);
  add_nce(config.loss[2], pairs.images.queries, texts, scale, sum, nullptr, &sum.texts);
  return sum;
}

// What the labels say of trust and confidence, as a share of the sum over all n queries with `present` neighbours:
// cross-entropy of each neighbour being true, and of any being true.
at::Tensor label_loss(const fusion::Fused& fused, const at::Tensor& mask, const at::Tensor& truth, double n,
                      double present) {
  if (!fused.trust_logits.defined()) return at::zeros({}, truth.options());
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

// The weights that learn, as leaves of the graph; what is computed with stands in `all`.
struct Leaves {
  Parameters all;
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
};

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

// Matrices of the encoder layers; whatever meets them takes their type.
bool lowers(const TrainingConfig& config, const std::string& name) {
  return config.precision == "bfloat16" && has(name, ".layers.") && !has(name, ".norm");
}

Leaves leaves_of(const TrainingConfig& config, const State& state) {
  Leaves out{state.parameters, {}, {}};
  for (auto& [name, value] : out.all) {
    if (state.first.contains(name)) {
      value = value.detach().requires_grad_(true);
      out.names.push_back(name);
      out.inputs.push_back(value);
    }
    if (lowers(config, name)) value = value.to(at::kBFloat16);  // the gradient comes back as float32
  }
  return out;
}

using Gradients = std::map<std::string, at::Tensor>;

// Gradients of what was refined, given the slopes of the loss along it.
void add_gradients(const std::vector<Refined>& refined, const std::vector<at::Tensor>& slopes, const Leaves& leaves,
                   Gradients& sum) {
  std::vector<at::Tensor> outputs, along;
  const auto add = [&](const at::Tensor& output, const at::Tensor& slope) {
    if (!output.requires_grad()) return;
    outputs.push_back(output);
    along.push_back(slope);
  };
  for (std::size_t i = 0; i < refined.size(); ++i) {
    add(refined[i].embeddings, slopes[i]);
    add(refined[i].label_loss, at::ones_like(refined[i].label_loss));
  }
  if (outputs.empty()) return;
  const auto found = torch::autograd::grad(outputs, leaves.inputs, along, std::nullopt, false, true);
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
    add_gradients({part}, {slope.narrow(0, first, count)}, leaves, sum);
  }
  return labels;
}

double gradients(const TrainingConfig& config, const Leaves& leaves, const Disturbed& batch, Gradients& sum) {
  const Half images{"image", batch.pairs.images, batch.image_truth}, texts{"text", batch.pairs.texts, batch.text_truth};
  const auto n = images.size();
  const bool in_parts = config.micro_batch > 0 && config.micro_batch < n;
  std::vector<Refined> whole;
  for (const auto* half : {&images, &texts}) {
    // The whole batch's contrastive loss with the graph of one part at a time (GradCache, arXiv 2101.06983).
    whole.push_back(in_parts ? Refined{embed(config, leaves.all, *half), {}} : refine(config, leaves.all, *half, 0, n));
  }
  const auto found = contrast(config, whole[0].embeddings, whole[1].embeddings, batch.pairs, leaves.all.at(kScale));
  if (config.learn_scale) sum[kScale] = found.log_scale;
  if (in_parts) {
    return found.loss + backward(config, leaves, images, found.images, sum) +
           backward(config, leaves, texts, found.texts, sum);
  }
  add_gradients(whole, {found.images, found.texts}, leaves, sum);
  return found.loss + (whole[0].label_loss + whole[1].label_loss).item<double>();
}

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
    steps.push_back(at::full({}, static_cast<double>(state.step + 1), gradient.options()));
  }
  if (values.empty()) return;
  at::_fused_adamw_(values, slopes, first, second, {}, steps, rate, 0.9, 0.98, decay, 1e-8, false, false);
}

}  // namespace

Pairs to(const Pairs& pairs, at::Device device) {
  const auto side = [&](const fusion::Batch& b) {
    return fusion::Batch{b.queries.to(device), b.partners.to(device), b.scores.to(device), b.mask.to(device)};
  };
  return {side(pairs.images), side(pairs.texts)};
}

Disturbed to(const Disturbed& batch, at::Device device) {
  return {to(batch.pairs, device), batch.image_truth.to(device), batch.text_truth.to(device)};
}

Parameters to(const Parameters& parameters, at::Device device) {
  Parameters out;
  for (const auto& [name, value] : parameters) out[name] = value.to(device);
  return out;
}

double rate(const TrainingConfig& config, std::int64_t step, std::int64_t steps) {
  const double warm = std::max(1.0, config.warmup * static_cast<double>(steps));
  const double at = static_cast<double>(step);
  if (at < warm) return config.learning_rate * (at + 1) / warm;
  const double done = (at - warm) / std::max(1.0, static_cast<double>(steps) - warm);
  return config.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * std::min(done, 1.0)));
}

double step(const TrainingConfig& config, State& state, const Disturbed& batch, double rate) {
  Gradients slopes;
  const double loss = gradients(config, leaves_of(config, state), batch, slopes);
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

}  // namespace reco::training
