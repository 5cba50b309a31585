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

// What is drawn for k neighbours goes for all of their columns: with fuse = "both" they come twice, all partners first.
struct Columns {
  std::int64_t k, groups;

  Columns(const TrainingConfig& config, const Batch& batch)
      : k(batch.scores.size(1) / (config.fusion.fuse == "both" ? 2 : 1)), groups(batch.scores.size(1) / k) {}

  at::Tensor all(const at::Tensor& x) const { return groups == 1 ? x : at::cat({x, x}, 1); }
  at::Tensor first(const at::Tensor& x) const { return x.narrow(1, 0, k); }
};

// Partners of neighbours of other pairs; the similarities stay, and so do the neighbours' same sides.
void swap_captions(const Draw& d, const Columns& columns, Batch& batch, at::Tensor& truth) {
  const auto n = batch.scores.size(0), k = columns.k;
  const auto chosen = d.uniform({n, k}).lt(d.wrong.unsqueeze(1));
  const auto source = d.below(n * k, {n * k});
  const auto partners = columns.first(batch.partners);
  const auto others = partners.reshape({n * k, -1}).index_select(0, source).view_as(partners);
  const auto swapped = at::where(chosen.unsqueeze(2), others, partners);
  batch.partners = columns.groups == 1 ? swapped : at::cat({swapped, batch.partners.narrow(1, k, k)}, 1);
  truth = truth * columns.all(chosen).logical_not();
}

// Other pairs of the batch as neighbours, best first again.
void replace_rows(const TrainingConfig& config, const Draw& d, const Columns& columns, Batch& batch,
                  const at::Tensor& other_side, at::Tensor& truth) {
  const auto n = batch.scores.size(0), k = columns.k;
  const auto drawn = d.uniform({n, k}).lt(d.random.unsqueeze(1));
  const auto own = at::arange(n, at::kLong).unsqueeze(1);
  const auto source = (own + 1 + d.below(n - 1, {n, k})).remainder(n).view({n * k});
  const auto take = [&](const at::Tensor& side) { return side.index_select(0, source).view({n, k, -1}); };
  const auto& compared = batch.compared.defined() ? batch.compared : batch.queries;
  const auto searched = take(config.fusion.search == "cross-modal" ? other_side : compared);
  auto fused = take(config.fusion.fuse == "same" ? batch.queries : other_side);
  if (columns.groups == 2) fused = at::cat({fused, take(batch.queries)}, 1);
  const auto chosen = columns.all(drawn);
  const auto scores = columns.all((searched * compared.unsqueeze(1)).sum(2));
  batch.scores = at::where(chosen, scores, batch.scores);
  batch.partners = at::where(chosen.unsqueeze(2), fused, batch.partners);
  batch.mask = batch.mask.logical_or(chosen);
  truth = truth * chosen.logical_not();
  auto order = columns.first(batch.scores.masked_fill(batch.mask.logical_not(), -9.0)).argsort(1, true);
  if (columns.groups == 2) order = at::cat({order, order + k}, 1);
  batch.scores = batch.scores.gather(1, order);
  batch.mask = batch.mask.gather(1, order);
  truth = truth.gather(1, order);
  batch.partners = batch.partners.gather(1, order.unsqueeze(2).expand_as(batch.partners));
}

// At least one neighbour stays.
void hide(const Draw& d, const Columns& columns, Batch& batch) {
  const auto n = batch.scores.size(0), k = columns.k;
  const auto there = columns.first(batch.mask);
  const auto dropped = d.uniform({n, k}).lt(d.dropped.unsqueeze(1));
  const auto last = (d.first * static_cast<double>(k)).ceil().clamp_min(1.0);
  auto kept = there.logical_and(dropped.logical_not());
  kept = kept.logical_and(at::arange(k, at::kFloat).unsqueeze(0).lt(last.unsqueeze(1)));
  const auto first = there.logical_and(at::arange(k, at::kLong).unsqueeze(0).eq(0));
  batch.mask = columns.all(at::where(kept.any(1, true), kept, first));
  batch.scores = batch.scores * batch.mask;
}

at::Tensor disturb_side(const TrainingConfig& config, const Draw& d, Batch& batch, const at::Tensor& other_side) {
  const Columns columns(config, batch);
  auto truth = batch.mask.to(at::kFloat);
  if (config.wrong_captions > 0) swap_captions(d, columns, batch, truth);
  if (config.random_rows > 0) replace_rows(config, d, columns, batch, other_side, truth);
  if (config.dropped > 0 || config.random_k > 0) hide(d, columns, batch);
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
