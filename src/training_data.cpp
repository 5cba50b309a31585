// SPDX-License-Identifier: Apache-2.0
#include "training_data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <unordered_map>

#include "reco/error.h"

namespace reco::training {

namespace {

constexpr std::int64_t kRowsAtOnce = 4096;
const char* kTag = "training.train";

void check_data(const TrainingData& data, const Memory& memory, const TrainingConfig& config) {
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

// Copies one block of results to its place.
void place(const Neighbors& part, Neighbors& all, std::int64_t first) {
  const auto n = part.rows.rows();
  all.rows.middleRows(first, n) = part.rows;
  all.scores.middleRows(first, n) = part.scores;
  all.partners.middleRows(first * all.k, n * all.k) = part.partners;
}

std::vector<std::vector<std::string>> own_keys(const std::vector<std::string>& keys, std::int64_t first,
                                               std::int64_t count) {
  std::vector<std::vector<std::string>> out;
  if (keys.empty()) return out;
  for (std::int64_t i = first; i < first + count; ++i) out.push_back({keys[i]});
  return out;
}

Neighbors neighbors_of(const Matrix& queries, const std::vector<std::string>& keys, const Memory& memory,
                       SearchOptions options, const std::function<void(std::int64_t)>& report) {
  const auto n = queries.rows();
  const auto k = options.k;
  Neighbors all{k, IndexMatrix(n, k), Matrix(n, k), Matrix(n * k, queries.cols())};
  for (std::int64_t first = 0; first < n; first += kRowsAtOnce) {
    const auto count = std::min<std::int64_t>(kRowsAtOnce, n - first);
    options.exclude_keys = own_keys(keys, first, count);
    place(memory.search(queries.middleRows(first, count), options), all, first);
    report(count);
  }
  return all;
}

fusion::Batch select(const fusion::Batch& batch, const at::Tensor& rows) {
  return {batch.queries.index_select(0, rows), batch.partners.index_select(0, rows), batch.scores.index_select(0, rows),
          batch.mask.index_select(0, rows)};
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

Dataset::Dataset(const TrainingData& data, const Memory& memory, const TrainingConfig& config,
                 const Progress& progress) {
  check_data(data, memory, config);
  const auto total = 2 * data.images.rows();
  std::int64_t done = 0;
  const auto report = [&](std::int64_t count) {
    done += count;
    check(!progress || progress(done, total), "interrupted", "training stopped while neighbours were searched");
  };
  SearchOptions options{.k = config.fusion.k, .max_similarity = config.max_similarity};
  image_neighbors_ = neighbors_of(data.images, data.keys, memory, options, report);
  options.modality = Modality::text;
  options.max_similarity.reset();  // an identical caption is what the text side looks for
  text_neighbors_ = neighbors_of(data.texts, data.keys, memory, options, report);
  images_ = fusion::batch(data.images, image_neighbors_);
  texts_ = fusion::batch(data.texts, text_neighbors_);
  std::vector<std::int64_t> concepts = data.concepts;
  if (concepts.empty()) {
    concepts.resize(data.images.rows());
    std::iota(concepts.begin(), concepts.end(), 0);
  }
  split(concepts, config.validation, config.seed);
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
  const auto index = at::tensor(rows, at::kLong);
  return {select(images_, index), select(texts_, index)};
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
