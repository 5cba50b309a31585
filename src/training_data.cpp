// SPDX-License-Identifier: Apache-2.0
#include "training_data.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <unordered_map>

#include "fusion_search.h"
#include "reco/error.h"

namespace reco::training {

namespace {

constexpr std::int64_t kRowsAtOnce = 4096;
const char* kTag = "training.train";

void check_pairs(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config) {
  const auto dim = config.fusion.dim;
  check(data.images.size() == 0 && data.texts.size() == 0 && data.keys.empty(), kTag,
        "expected pairs or images and texts, and not both");
  check(data.pairs->dim() == dim && memory.dim() == dim, kTag, "fusion.dim is ", dim, ", the pairs have dim ",
        data.pairs->dim(), ", the memory ", memory.dim());
  check(data.pairs->encoder() == memory.encoder(), kTag, "the pairs were made with encoder ", data.pairs->encoder(),
        ", the memory with ", memory.encoder());
  check(data.pairs->size() >= 2, kTag, "expected two pairs or more, got ", data.pairs->size());
  const auto concepts = static_cast<std::int64_t>(data.concepts.size());
  check(concepts == 0 || concepts == data.pairs->size(), kTag, "expected ", data.pairs->size(), " concepts, got ",
        concepts);
  check(memory.size() > 0, kTag, "the memory is empty");
}

// Row numbers of all pairs' neighbours; of the pairs held at a time, tokens and attention of every layer, there and
// back, for both sides; the contrastive matrix.
void check_room(std::int64_t pairs, const TrainingConfig& config) {
  const auto number = [](std::int64_t x) { return static_cast<double>(x); };
  const auto batch = std::min(config.batch_size, pairs);
  const double held = number(config.micro_batch > 0 ? std::min(config.micro_batch, batch) : batch);
  const double slots = number(config.fusion.slots()), dim = number(config.fusion.dim);
  const double layers = number(config.fusion.layers);
  const double tokens = held * slots * dim * (1 + layers * (8 + 2 * config.fusion.mlp_ratio));
  const double attention = held * slots * slots * (2 + layers * number(config.fusion.heads));
  const double bytes = 24 * number(pairs) * slots + 16 * (tokens + attention + number(batch) * number(batch));
  const double room = number(sysconf(_SC_PHYS_PAGES)) * number(sysconf(_SC_PAGE_SIZE));
  check(bytes < room, kTag, "training would need about ", std::llround(bytes / 1e9), " GB, the machine has ",
        std::llround(room / 1e9), " GB: lower micro_batch, batch_size or k");
}

void check_data(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config) {
  if (data.pairs) return check_pairs(data, memory, config);
  const auto n = data.images.rows();
  const auto dim = config.fusion.dim;
  check(n >= 2 && data.texts.rows() == n, kTag, "images and texts must have the same number of rows, two or more, got ",
        n, " and ", data.texts.rows());
  check(data.images.cols() == dim && data.texts.cols() == dim && memory.dim() == dim, kTag, "fusion.dim is ", dim,
        ", images have ", data.images.cols(), " columns, texts ", data.texts.cols(), ", the memory ", memory.dim());
  check(data.keys.empty() || static_cast<std::int64_t>(data.keys.size()) == n, kTag, "expected ", n, " keys, got ",
        data.keys.size());
  check(data.concepts.empty() || static_cast<std::int64_t>(data.concepts.size()) == n, kTag, "expected ", n,
        " concepts, got ", data.concepts.size());
  check(data.images.allFinite() && data.texts.allFinite(), kTag, "embeddings must be finite");
  check(memory.size() > 0, kTag, "the memory is empty");
}

std::vector<std::vector<std::string>> own_keys(const std::vector<std::string>& keys, std::int64_t first,
                                               std::int64_t count) {
  std::vector<std::vector<std::string>> out;
  if (keys.empty()) return out;
  for (std::int64_t i = first; i < first + count; ++i) out.push_back({keys[i]});
  return out;
}

Matrix select(const Matrix& matrix, std::span<const std::int64_t> rows) {
  Matrix out(static_cast<Eigen::Index>(rows.size()), matrix.cols());
  for (std::size_t i = 0; i < rows.size(); ++i) out.row(static_cast<Eigen::Index>(i)) = matrix.row(rows[i]);
  return out;
}

at::Tensor copied(const MatrixView& matrix, std::vector<std::int64_t> shape) {
  return fusion::view(matrix, std::move(shape)).clone();
}

// std::shuffle and the standard distributions differ between libraries; these do not.
std::uint64_t below(std::mt19937_64& random, std::uint64_t bound) { return random() % bound; }

template <typename T>
void shuffle(std::vector<T>& items, std::mt19937_64& random) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(random, i)]);
}

std::mt19937_64 generator(std::uint64_t seed, std::uint64_t stream) {
  std::seed_seq sequence{seed & 0xffffffffU, seed >> 32U, stream & 0xffffffffU, stream >> 32U};
  return std::mt19937_64(sequence);
}

}  // namespace

Dataset::Dataset(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config,
                 const Progress& progress)
    : data_(data), memory_(memory), config_(config.fusion) {
  check_data(data, memory, config);
  if (data.pairs) pair_rows_ = data.pairs->rows();
  size_ = data.pairs ? static_cast<std::int64_t>(pair_rows_.size()) : data.images.rows();
  check_room(size_, config);
  std::int64_t done = 0;
  const auto report = [&](std::int64_t count) {
    done += count;
    check(!progress || progress(done, 2 * size_), "interrupted", "training stopped while neighbours were searched");
  };
  images_ = search(Modality::image, config, report);
  texts_ = search(Modality::text, config, report);
  std::vector<std::int64_t> concepts = data.concepts;
  if (concepts.empty()) {
    concepts.resize(size_);
    std::iota(concepts.begin(), concepts.end(), 0);
  }
  split(concepts, config.validation, config.seed);
}

Matrix Dataset::embeddings(Modality side, std::span<const std::int64_t> rows) const {
  if (!data_.pairs) return select(side == Modality::image ? data_.images : data_.texts, rows);
  std::vector<std::int64_t> stored(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) stored[i] = pair_rows_[rows[i]];
  return data_.pairs->embeddings(stored, side);
}

Neighbors Dataset::search(Modality side, const TrainingConfig& config,
                          const std::function<void(std::int64_t)>& report) const {
  SearchOptions options{.k = config_.k, .modality = side, .max_similarity = config.max_similarity, .partners = false};
  Neighbors all{config_.k, IndexMatrix(size_, config_.k), Matrix(size_, config_.k), {}};
  for (std::int64_t first = 0; first < size_; first += kRowsAtOnce) {
    const auto count = std::min<std::int64_t>(kRowsAtOnce, size_ - first);
    std::vector<std::int64_t> rows(count);
    std::iota(rows.begin(), rows.end(), first);
    const auto keys = data_.pairs ? data_.pairs->keys(std::span(pair_rows_).subspan(first, count)) : data_.keys;
    options.exclude_keys = own_keys(keys, data_.pairs ? 0 : first, count);
    const auto part = fusion::search(memory_, config_, embeddings(side, rows), options);
    all.rows.middleRows(first, count) = part.rows;
    all.scores.middleRows(first, count) = part.scores;
    report(count);
  }
  return all;
}

fusion::Batch Dataset::batch(Modality side, const std::vector<std::int64_t>& rows) const {
  const auto& all = side == Modality::image ? images_ : texts_;
  const auto n = static_cast<std::int64_t>(rows.size());
  Neighbors found{all.k, IndexMatrix(n, all.k), select(all.scores, rows), {}};
  for (std::int64_t i = 0; i < n; ++i) found.rows.row(i) = all.rows.row(rows[i]);
  fusion::fetch(memory_, config_, side, found);
  const auto mask = at::from_blob(found.rows.data(), {n, found.k}, at::kLong).ge(0);
  return {copied(embeddings(side, rows), {n, config_.dim}), copied(found.partners, {n, found.k, config_.dim}),
          copied(found.scores, {n, found.k}), mask};
}

void Dataset::split(const std::vector<std::int64_t>& concepts, double share, std::uint64_t seed) {
  std::unordered_map<std::int64_t, std::size_t> places;
  std::vector<std::vector<std::int64_t>> groups;
  for (std::size_t row = 0; row < concepts.size(); ++row) {
    const auto [entry, is_new] = places.try_emplace(concepts[row], groups.size());
    if (is_new) groups.emplace_back();
    groups[entry->second].push_back(static_cast<std::int64_t>(row));
  }
  check(groups.size() >= 2, kTag, "expected pairs of two concepts or more, got ", groups.size());
  auto random = generator(seed, ~0ULL);
  shuffle(groups, random);
  const auto held = std::min(groups.size() - 2, static_cast<std::size_t>(share * static_cast<double>(groups.size())));
  validation_.assign(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(held));
  train_.assign(groups.begin() + static_cast<std::ptrdiff_t>(held), groups.end());
}

Pairs Dataset::rows(const std::vector<std::int64_t>& rows) const {
  return {batch(Modality::image, rows), batch(Modality::text, rows)};
}

std::vector<std::vector<std::int64_t>> Dataset::epoch(std::uint64_t seed, std::int64_t epoch,
                                                      std::int64_t batch_size) const {
  auto random = generator(seed, static_cast<std::uint64_t>(epoch));
  std::vector<std::int64_t> order;
  for (const auto& rows : train_) order.push_back(rows[below(random, rows.size())]);
  shuffle(order, random);
  const auto total = static_cast<std::int64_t>(order.size());
  // Batches of equal size, so that no epoch ends on a small one with few negatives.
  const auto count = (total + batch_size - 1) / batch_size;
  std::vector<std::vector<std::int64_t>> batches;
  for (std::int64_t i = 0; i < count; ++i) {
    batches.emplace_back(order.begin() + i * total / count, order.begin() + (i + 1) * total / count);
  }
  return batches;
}

double accuracy(const at::Tensor& images, const at::Tensor& texts, const std::vector<std::int64_t>& own) {
  const auto best = at::matmul(images, texts.t()).argmax(1);
  return best.eq(at::tensor(own, at::kLong)).to(at::kDouble).mean().item<double>();
}

}  // namespace reco::training
