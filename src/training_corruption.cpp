// SPDX-License-Identifier: Apache-2.0
#include "training_corruption.h"

#include <ATen/CPUGeneratorImpl.h>

namespace reco::training {

namespace {

using fusion::Batch;

// Numbers for one batch. The rates belong to pairs: both sides of a pair come from the same memory.
struct Draw {
  at::Generator generator;
  at::Tensor wrong, random, dropped, first;  // [n]: rates of neighbours; the last one a share of k

  at::Tensor uniform(std::vector<std::int64_t> shape) const { return at::rand(shape, generator); }
  at::Tensor below(std::int64_t bound, std::vector<std::int64_t> shape) const {
    return at::randint(bound, shape, generator, at::kLong);
  }
  at::Tensor hit(std::int64_t n, double share) const { return uniform({n}).lt(share); }
};

Draw draw(const TrainingConfig& config, std::int64_t n, std::uint64_t stream, bool all) {
  Draw d{at::detail::createCPUGenerator(config.seed * 0x9e3779b97f4a7c15ULL + stream), {}, {}, {}, {}};
  const auto share = [&](double given) { return all && given > 0 ? 1.0 : given; };
  // Up to twice over all: one rate in two is that of a memory where nothing is true.
  d.wrong = (2.0 * d.uniform({n})).clamp_max(1.0) * d.hit(n, share(config.wrong_captions));
  d.random = (2.0 * d.uniform({n})).clamp_max(1.0) * d.hit(n, config.random_rows);
  d.dropped = 0.5 * d.uniform({n}) * d.hit(n, share(config.dropped));
  d.first = at::where(d.hit(n, config.random_k), d.uniform({n}), at::ones({n}));
  return d;
}

// Partners of neighbours of other pairs; the similarities stay.
void swap_captions(const Draw& d, Batch& batch, at::Tensor& truth) {
  const auto n = batch.scores.size(0), k = batch.scores.size(1);
  const auto chosen = d.uniform({n, k}).lt(d.wrong.unsqueeze(1));
  const auto source = d.below(n * k, {n * k});
  const auto others = batch.partners.reshape({n * k, -1}).index_select(0, source).view_as(batch.partners);
  batch.partners = at::where(chosen.unsqueeze(2), others, batch.partners);
  truth = truth * chosen.logical_not();
}

// Other pairs of the batch as neighbours, best first again.
void replace_rows(const TrainingConfig& config, const Draw& d, Batch& batch, const at::Tensor& other_side,
                  at::Tensor& truth) {
  const auto n = batch.scores.size(0), k = batch.scores.size(1);
  const auto chosen = d.uniform({n, k}).lt(d.random.unsqueeze(1));
  const auto own = at::arange(n, at::kLong).unsqueeze(1);
  const auto source = (own + 1 + d.below(n - 1, {n, k})).remainder(n).view({n * k});
  const auto take = [&](const at::Tensor& side) { return side.index_select(0, source).view({n, k, -1}); };
  const auto& compared = batch.compared.defined() ? batch.compared : batch.queries;
  const auto searched = take(config.fusion.search == "cross-modal" ? other_side : compared);
  const auto fused = take(config.fusion.fuse == "same" ? batch.queries : other_side);
  batch.scores = at::where(chosen, (searched * compared.unsqueeze(1)).sum(2), batch.scores);
  batch.partners = at::where(chosen.unsqueeze(2), fused, batch.partners);
  batch.mask = batch.mask.logical_or(chosen);
  truth = truth * chosen.logical_not();
  const auto order = batch.scores.masked_fill(batch.mask.logical_not(), -9.0).argsort(1, true);
  batch.scores = batch.scores.gather(1, order);
  batch.mask = batch.mask.gather(1, order);
  truth = truth.gather(1, order);
  batch.partners = batch.partners.gather(1, order.unsqueeze(2).expand_as(batch.partners));
}

// At least one neighbour stays.
void hide(const Draw& d, Batch& batch) {
  const auto n = batch.scores.size(0), k = batch.scores.size(1);
  const auto dropped = d.uniform({n, k}).lt(d.dropped.unsqueeze(1));
  const auto last = (d.first * static_cast<double>(k)).ceil().clamp_min(1.0);
  auto kept = batch.mask.logical_and(dropped.logical_not());
  kept = kept.logical_and(at::arange(k, at::kFloat).unsqueeze(0).lt(last.unsqueeze(1)));
  const auto first = batch.mask.logical_and(at::arange(k, at::kLong).unsqueeze(0).eq(0));
  batch.mask = at::where(kept.any(1, true), kept, first);
  batch.scores = batch.scores * batch.mask;
}

at::Tensor disturb_side(const TrainingConfig& config, const Draw& d, Batch& batch, const at::Tensor& other_side) {
  auto truth = batch.mask.to(at::kFloat);
  if (config.wrong_captions > 0) swap_captions(d, batch, truth);
  if (config.random_rows > 0) replace_rows(config, d, batch, other_side, truth);
  if (config.dropped > 0 || config.random_k > 0) hide(d, batch);
  return truth * batch.mask;
}

}  // namespace

Disturbed disturb(const TrainingConfig& config, const Pairs& pairs, std::uint64_t stream, bool all) {
  const auto d = draw(config, pairs.images.queries.size(0), stream, all);
  Disturbed out{pairs, {}, {}};
  out.image_truth = disturb_side(config, d, out.pairs.images, pairs.texts.queries);
  out.text_truth = disturb_side(config, d, out.pairs.texts, pairs.images.queries);
  return out;
}

}  // namespace reco::training
