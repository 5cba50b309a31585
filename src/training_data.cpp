// SPDX-License-Identifier: Apache-2.0
#include "training_data.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "fusion_metric.h"
#include "fusion_search.h"
#include "reco/error.h"

namespace reco::training {

namespace {

constexpr std::int64_t kComparedAtOnce = 8192;  // images, with all texts
constexpr std::int64_t kSample = 256;           // pairs whose neighbours of an earlier run are compared again
constexpr float kTolerance = 0.01F;             // of similarities, which memories round differently
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

// Order and concepts of all pairs, and their neighbours where those have no file; of the pairs held at a time, tokens
// and attention of every layer, there and back, for both sides; the contrastive matrix.
void check_room(std::int64_t pairs, const TrainingConfig& config) {
  const auto number = [](std::int64_t x) { return static_cast<double>(x); };
  const auto batch = std::min(config.batch_size, pairs);
  const double held = number(config.micro_batch > 0 ? std::min(config.micro_batch, batch) : batch);
  const double slots = number(config.fusion.slots()), dim = number(config.fusion.dim);
  const double layers = number(config.fusion.layers);
  const double tokens = held * slots * dim * (1 + layers * (8 + 2 * config.fusion.mlp_ratio));
  const double attention = held * slots * slots * (2 + layers * number(config.fusion.heads));
  const double table = neighbor_folder(config).empty() ? 2 * 12 * number(config.fusion.k) : 0;
  const double bytes = number(pairs) * (64 + table) + 16 * (tokens + attention + number(batch) * number(batch));
  const double room = number(sysconf(_SC_PHYS_PAGES)) * number(sysconf(_SC_PAGE_SIZE));
  check(bytes < room, kTag, "training would need about ", std::llround(bytes / 1e9), " GB, the machine has ",
        std::llround(room / 1e9), " GB: lower micro_batch, batch_size or k");
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

Dataset::Dataset(const TrainingData& data, const MemoryBase& memory, const TrainingConfig& config,
                 const Progress& progress)
    : data_(data), memory_(memory), config_(config.fusion) {
  if (data.pairs) pair_rows_ = data.pairs->rows();
  size_ = data.pairs ? static_cast<std::int64_t>(pair_rows_.size()) : data.images.rows();
  check_room(size_, config);
  neighbors_.emplace(config, size_, memory);
  std::int64_t done = 0;
  neighbors_->fill([&](Modality side, std::int64_t first, std::int64_t count, std::int64_t k) {
    check(!progress || progress(done += count, 2 * size_), "interrupted",
          "training stopped while neighbours were searched");
    std::vector<std::int64_t> rows(count);
    std::iota(rows.begin(), rows.end(), first);
    return fusion::search(memory_, config_, embeddings(side, rows),
                          {.k = k,
                           .modality = side,
                           .exclude_keys = own_keys(rows),
                           .max_similarity = config.max_similarity,
                           .partners = false});
  });
  if (neighbors_->reused()) check_reused();
  split(config.validation, config.seed);
}

// A pair's own key in the memory, or none.
std::vector<std::vector<std::string>> Dataset::own_keys(std::span<const std::int64_t> rows) const {
  std::vector<std::vector<std::string>> out;
  if (!data_.pairs && data_.keys.empty()) return out;
  std::vector<std::int64_t> stored(rows.begin(), rows.end());
  if (data_.pairs) {
    for (auto& row : stored) row = pair_rows_[row];
    for (auto& key : data_.pairs->keys(stored)) out.push_back({std::move(key)});
  } else {
    for (const auto row : rows) out.push_back({data_.keys[row]});
  }
  return out;
}

// Neighbours that an earlier run found, or another program, must be those of these pairs in this memory.
void Dataset::check_reused() const {
  const std::int64_t highest = neighbors_->highest_row();
  try {
    memory_.embeddings(std::span(&highest, 1), Modality::image);
  } catch (const Error& error) {
    fail(kTag, "the neighbours in ", neighbors_->folder().string(), " are not of this memory: ", error.what());
  }
  check_scores(Modality::image);
  check_scores(Modality::text);
}

// Compares a sample: the similarity of query and neighbour, and that no neighbour is the pair itself.
void Dataset::check_scores(Modality side) const {
  std::vector<std::int64_t> rows;
  const auto count = std::min(size_, kSample);
  for (std::int64_t i = 0; i < count; ++i) rows.push_back(i * size_ / count);
  const auto found = neighbors_->of(side, rows, config_.k);
  const std::span flat(found.rows.data(), static_cast<std::size_t>(found.rows.size()));
  const bool across = config_.search == "cross-modal";
  const auto searched = (side == Modality::image) != across ? Modality::image : Modality::text;
  const Matrix queries = embeddings(side, rows).rowwise().normalized(), near = memory_.embeddings(flat, searched);
  const auto keys = memory_.keys(flat);
  const auto own = own_keys(rows);
  for (std::int64_t i = 0; i < found.rows.size(); ++i) {
    const auto query = i / found.k;
    const float expected = near.row(i).dot(queries.row(query));
    const bool same = std::abs(expected - found.scores.data()[i]) < kTolerance;
    check(same && (own.empty() || flat[i] < 0 || keys[i] != own[query][0]), kTag, "the neighbours in ",
          neighbors_->folder().string(), " are not of these pairs in this memory: ", fusion::side_name(side), " ",
          rows[query], " and row ", flat[i], " have a similarity of ", expected, ", found ", found.scores.data()[i],
          "; remove the folder to search again");
  }
}

Matrix Dataset::embeddings(Modality side, std::span<const std::int64_t> rows) const {
  if (!data_.pairs) return select(side == Modality::image ? data_.images : data_.texts, rows);
  std::vector<std::int64_t> stored(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) stored[i] = pair_rows_[rows[i]];
  return data_.pairs->embeddings(stored, side);
}

fusion::Batch Dataset::batch(Modality side, const std::vector<std::int64_t>& rows) const {
  const auto n = static_cast<std::int64_t>(rows.size());
  auto found = neighbors_->of(side, rows, config_.k);
  fusion::fetch(memory_, config_, side, found);
  const auto mask = at::from_blob(found.rows.data(), {n, found.k}, at::kLong).ge(0);
  fusion::Batch out{queries(side, rows), copied(found.partners, {n, found.k, config_.dim}),
                    copied(found.scores, {n, found.k}), mask};
  if (side == Modality::text || !metric_.defined()) return out;
  const std::span flat(found.rows.data(), static_cast<std::size_t>(found.rows.size()));
  const auto same = copied(memory_.embeddings(flat, side), {n, found.k, config_.dim});
  out.scores = fusion::compare(metric_, out.queries, same);
  out.compared = fusion::mapped(metric_, out.queries);
  return out;
}

void Dataset::compare_with(const Parameters& parameters) {
  if (!config_.metric) return;
  metric_ = parameters.at("image.metric").detach().cpu();
}

at::Tensor Dataset::queries(Modality side, const std::vector<std::int64_t>& rows) const {
  return copied(embeddings(side, rows), {static_cast<std::int64_t>(rows.size()), config_.dim});
}

// Rows of one concept become neighbours; concepts come in random order, the first of them held out. Rows that are held
// out by name make concepts of their own.
void Dataset::split(double share, std::uint64_t seed) {
  const auto& concepts = data_.concepts;
  const std::set<std::int64_t> held(data_.held_out.begin(), data_.held_out.end());
  check(held.empty() || (*held.begin() >= 0 && *held.rbegin() < size_), kTag, "held_out must be rows from 0 to ",
        size_ - 1);
  const auto concept_of = [&](std::int64_t row) {
    return std::pair(!held.contains(row), concepts.empty() ? row : concepts[row]);
  };
  std::vector<std::int64_t> sorted(size_), runs;
  std::iota(sorted.begin(), sorted.end(), 0);
  if (!concepts.empty() || !held.empty()) {
    std::sort(sorted.begin(), sorted.end(),
              [&](auto a, auto b) { return std::pair(concept_of(a), a) < std::pair(concept_of(b), b); });
  }
  const auto begins = [&](std::int64_t i) {
    return i == 0 || i == size_ || concept_of(sorted[i]) != concept_of(sorted[i - 1]);
  };
  for (std::int64_t i = 0; i < size_; ++i) {
    if (begins(i)) runs.push_back(i);
  }
  // As they first appear, then shuffled.
  std::sort(runs.begin(), runs.end(), [&](auto a, auto b) { return sorted[a] < sorted[b]; });
  auto random = generator(seed, ~0ULL);
  shuffle(runs, random);
  const auto named = std::stable_partition(runs.begin(), runs.end(), [&](auto i) { return held.contains(sorted[i]); });
  held_out_ = static_cast<std::size_t>(named - runs.begin());
  check(runs.size() >= held_out_ + 2, kTag, "expected pairs of two concepts or more, got ", runs.size() - held_out_);
  check(held_out_ <= kMostHeldOut, kTag, "held_out must have ", kMostHeldOut, " concepts at most, got ", held_out_);
  grouped_.reserve(sorted.size());
  starts_.reserve(runs.size() + 1);
  for (auto i : runs) {
    starts_.push_back(static_cast<std::int64_t>(grouped_.size()));
    do grouped_.push_back(sorted[i++]);
    while (!begins(i));
  }
  starts_.push_back(size_);
  if (!held.empty()) return;
  held_out_ =
      std::min({runs.size() - 2, static_cast<std::size_t>(share * static_cast<double>(runs.size())), kMostHeldOut});
}

Pairs Dataset::rows(const std::vector<std::int64_t>& rows) const {
  return {batch(Modality::image, rows), batch(Modality::text, rows)};
}

std::vector<std::vector<std::int64_t>> Dataset::epoch(std::uint64_t seed, std::int64_t epoch,
                                                      std::int64_t batch_size) const {
  auto random = generator(seed, static_cast<std::uint64_t>(epoch));
  std::vector<std::int64_t> order;
  const auto concepts = train();
  order.reserve(concepts.size());
  for (std::size_t i = 0; i < concepts.size(); ++i) order.push_back(concepts[i][below(random, concepts[i].size())]);
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

at::Tensor nearest_rows(const at::Tensor& images, const at::Tensor& texts) {
  std::vector<at::Tensor> parts;
  for (const auto& part : images.split(kComparedAtOnce)) parts.push_back(at::matmul(part, texts.t()).argmax(1));
  return at::cat(parts);
}

double accuracy(const at::Tensor& images, const at::Tensor& texts, const at::Tensor& wanted) {
  return nearest_rows(images, texts).eq(wanted).to(at::kDouble).mean().item<double>();
}

}  // namespace reco::training
