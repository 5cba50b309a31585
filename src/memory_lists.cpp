// SPDX-License-Identifier: Apache-2.0
// Inverted lists (Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011) of row numbers:
// what is scanned are the rows of the shards. The file, in safetensors:
//
//     centroids  F16 [lists, dim]  unit rows, of FAISS's k-means
//     offsets    I64 [lists + 1]   where a list begins
//     rows       I64 [n]           row numbers, ascending within a list
#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "io/safetensors.h"
#include "memory_budget.h"
#include "memory_index.h"
#include "parallel.h"

namespace reco {

namespace {

constexpr const char* kTag = "memory.index";
constexpr std::int64_t kBlockRows = 64;
constexpr std::int64_t kChunkRows = 16'384;
constexpr std::int64_t kMostLists = 1 << 20;
/// Rows a centroid that k-means sees at most; FAISS warns below 39.
constexpr std::int64_t kTrainingRows = 64;
constexpr int kIterations = 10;

/// Which queries look into a list.
using Visitors = std::vector<std::vector<std::int32_t>>;

/// The nearest centroids of queries.
class Centroids {
 public:
  Centroids(std::span<const Half> rows, std::int64_t dim)
      : kernel_(memory_kernel()),
        rows_(rows.data()),
        dim_(dim),
        padded_(kernel_.padded(dim)),
        count_(static_cast<std::int64_t>(rows.size()) / dim) {}
  std::int64_t count() const { return count_; }
  std::int64_t padded_dim() const { return padded_; }

  /// The `wanted` nearest of each of n padded queries, in no order.
  std::vector<std::vector<std::int32_t>> nearest(const float* queries, std::int64_t n, std::int64_t wanted) const {
    const Matrix scores = n == 1 ? score_one(queries) : score(queries, n);
    std::vector<std::vector<std::int32_t>> found(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) select(scores.row(i).data(), wanted, found[i]);
    return found;
  }

 private:
  Matrix score_one(const float* query) const {
    Matrix scores(1, count_ + 4);
    std::vector<const std::byte*> data(static_cast<std::size_t>(count_));
    for (std::int64_t i = 0; i < count_; ++i) data[i] = reinterpret_cast<const std::byte*>(rows_ + i * dim_);
    kernel_.scores_of_one(query, data.data(), count_, dim_, scores.data());
    return scores;
  }

  Matrix score(const float* queries, std::int64_t n) const {
    const std::int64_t stride = (count_ + kBlockRows - 1) / kBlockRows * kBlockRows;
    Matrix scores(n, stride);
    Matrix widened = Matrix::Zero(kBlockRows, padded_);
    for (std::int64_t first = 0; first < count_; first += kBlockRows) {
      const std::int64_t rows = std::min(kBlockRows, count_ - first);
      for (std::int64_t j = 0; j < rows; ++j) kernel_.widen(rows_ + (first + j) * dim_, dim_, widened.row(j).data());
      kernel_.scores(queries, n, widened.data(), rows, padded_, scores.data() + first, stride);
    }
    return scores;
  }

  void select(const float* scores, std::int64_t wanted, std::vector<std::int32_t>& out) const {
    const auto higher = [&](std::int32_t a, std::int32_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    };
    if (wanted == 1) {
      out = {static_cast<std::int32_t>(std::max_element(scores, scores + count_) - scores)};
      return;
    }
    out.resize(static_cast<std::size_t>(count_));
    std::iota(out.begin(), out.end(), 0);
    if (wanted >= count_) return;
    std::nth_element(out.begin(), out.begin() + wanted - 1, out.end(), higher);
    out.resize(static_cast<std::size_t>(wanted));
  }

  const MemoryKernel& kernel_;
  const Half* rows_;
  std::int64_t dim_;
  std::int64_t padded_;
  std::int64_t count_;
};

class Lists final : public MemoryIndex {
 public:
  Lists(const std::filesystem::path& path, std::int64_t dim)
      : file_(path),
        centroids_(index_tensor<Half>(file_, "centroids", "F16", 2), dim),
        offsets_(index_tensor<std::int64_t>(file_, "offsets", "I64", 1)),
        rows_(index_tensor<std::int64_t>(file_, "rows", "I64", 1)) {
    bool fits = file_.tensors().at("centroids").shape[1] == dim && centroids_.count() >= 1 &&
                static_cast<std::int64_t>(offsets_.size()) == centroids_.count() + 1 && offsets_.front() == 0 &&
                offsets_.back() == static_cast<std::int64_t>(rows_.size());
    fits = fits && std::is_sorted(offsets_.begin(), offsets_.end());
    check(fits, kTag, "'", path.string(), "' is damaged: its tensors do not fit each other");
  }

  void set_effort(std::int64_t effort, std::int64_t) override {
    effort_ = std::clamp<std::int64_t>(effort, 1, 1 << 20);
  }

  void search(const QueryGroup& group, Candidates& best) const override {
    const Visitors visitors = find_lists(group);
    std::vector<std::int64_t> visited;
    for (std::size_t list = 0; list < visitors.size(); ++list) {
      if (!visitors[list].empty()) visited.push_back(static_cast<std::int64_t>(list));
    }
    const auto scan = [&](RowScanner& scanner, std::int64_t i) {
      const auto list = static_cast<std::size_t>(visited[i]);
      scanner.scan(rows_of(list, group.snapshot.rows), visitors[list]);
    };
    scan_on_threads<RowScanner>(group, static_cast<std::int64_t>(visited.size()), scan, best);
  }

 private:
  Visitors find_lists(const QueryGroup& group) const {
    Visitors visitors(static_cast<std::size_t>(centroids_.count()));
    const std::int64_t effort = group.search.effort > 0 ? group.search.effort : effort_;
    std::vector<std::vector<std::vector<std::int32_t>>> blocks(
        static_cast<std::size_t>((group.count + kBlockRows - 1) / kBlockRows));
    parallel_for(static_cast<std::int64_t>(blocks.size()), [&](std::int64_t block) {
      const std::int64_t first = block * kBlockRows;
      blocks[block] = centroids_.nearest(group.query(first), std::min(kBlockRows, group.count - first), effort);
    });
    for (std::int64_t i = 0; i < group.count; ++i) {
      for (const std::int32_t list : blocks[i / kBlockRows][i % kBlockRows]) {
        visitors[list].push_back(static_cast<std::int32_t>(i));
      }
    }
    return visitors;
  }

  std::span<const std::int64_t> rows_of(std::size_t list, std::int64_t end) const {
    const auto rows = rows_.subspan(static_cast<std::size_t>(offsets_[list]),
                                    static_cast<std::size_t>(offsets_[list + 1] - offsets_[list]));
    for (const std::int64_t row : rows) {
      check(row >= 0 && row < end, kTag, "'", file_.path().string(), "' is damaged: list ", list, " has row ", row);
    }
    return rows;
  }

  io::Safetensors file_;
  Centroids centroids_;
  std::span<const std::int64_t> offsets_;
  std::span<const std::int64_t> rows_;
  std::int64_t effort_ = 16;
};

std::vector<Half> train_centroids(const IndexSource& source, std::int64_t lists, const IndexBuild& build) {
  const auto wanted = static_cast<std::size_t>(lists * kTrainingRows);
  auto sample = std::span(source.sample).first(std::min(wanted, source.sample.size()));
  const Modality modality = source.side == 0 ? Modality::image : Modality::text;
  const Matrix data = source.snapshot.gather(sample, modality);
  return with_faiss(kTag, [&] {
    faiss::ClusteringParameters parameters;
    parameters.niter = kIterations;
    parameters.spherical = true;
    parameters.seed = static_cast<int>(build.seed & 0x7fffffffU);
    parameters.min_points_per_centroid = 1;
    parameters.max_points_per_centroid = static_cast<int>(kTrainingRows);
    faiss::Clustering clustering(static_cast<int>(source.snapshot.dim()), static_cast<int>(lists), parameters);
    faiss::IndexFlatIP nearest(static_cast<int>(source.snapshot.dim()));
    clustering.train(data.rows(), data.data(), nearest);
    std::vector<Half> centroids(clustering.centroids.size());
    memory_kernel().narrow(clustering.centroids.data(), static_cast<std::int64_t>(centroids.size()), centroids.data());
    return centroids;
  });
}

class ListsBuilder final : public IndexBuilder {
 public:
  ListsBuilder(std::int64_t lists, const IndexSource& source, const IndexBuild& build)
      : source_(source), build_(build), lists_(lists) {
    check(lists <= kMostLists && lists <= source.rows, kTag, "IVF must have at most ", kMostLists,
          " lists and no more than there are rows, ", source.rows, ", got ", lists);
    const std::int64_t sample =
        std::min<std::int64_t>(lists * kTrainingRows, static_cast<std::int64_t>(source.sample.size()));
    // Rows and centroids as floats, and the scores of what is compared at once: in training, then in adding.
    const std::int64_t compared = std::max(std::min<std::int64_t>(sample, 4'096) * std::min<std::int64_t>(lists, 1'024),
                                           threads() * kBlockRows * (lists + kBlockRows));
    const std::int64_t numbers = (2 * sample + 3 * lists + 2 * kChunkRows) * source.snapshot.dim() + compared;
    const std::int64_t bytes = source.rows * 28 + numbers * std::int64_t{sizeof(float)};
    check_budget("IVF" + std::to_string(lists), source, build, bytes, "fewer lists need less");
    rows_.reserve(static_cast<std::size_t>(source.rows));
    list_of_.reserve(static_cast<std::size_t>(source.rows));
  }

  void train() override {
    centroids_ = train_centroids(source_, lists_, build_);
    nearest_.emplace(std::span<const Half>(centroids_), source_.snapshot.dim());
  }

  void add(std::span<const std::int64_t> rows) override {
    const std::int64_t dim = source_.snapshot.dim();
    const Modality modality = source_.side == 0 ? Modality::image : Modality::text;
    for (std::size_t first = 0; first < rows.size(); first += kChunkRows) {
      const auto chunk = rows.subspan(first, std::min<std::size_t>(kChunkRows, rows.size() - first));
      Matrix data(static_cast<Eigen::Index>(chunk.size()), nearest_->padded_dim());
      data.leftCols(dim) = source_.snapshot.gather(chunk, modality);
      data.rightCols(nearest_->padded_dim() - dim).setZero();
      std::vector<std::int32_t> lists(chunk.size());
      parallel_for((data.rows() + kBlockRows - 1) / kBlockRows, [&](std::int64_t block) {
        const std::int64_t begin = block * kBlockRows;
        const auto found = nearest_->nearest(data.row(begin).data(), std::min(kBlockRows, data.rows() - begin), 1);
        for (std::size_t i = 0; i < found.size(); ++i) lists[static_cast<std::size_t>(begin) + i] = found[i][0];
      });
      rows_.insert(rows_.end(), chunk.begin(), chunk.end());  // all of the chunk or, where that was stopped, none
      list_of_.insert(list_of_.end(), lists.begin(), lists.end());
      build_.report(static_cast<std::int64_t>(chunk.size()));
    }
  }

  void write(const std::filesystem::path& path) const override {
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(nearest_->count() + 1));
    for (const std::int32_t list : list_of_) ++offsets[static_cast<std::size_t>(list) + 1];
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    auto next = offsets;
    std::vector<std::int64_t> sorted(rows_.size());
    for (std::size_t i = 0; i < rows_.size(); ++i) sorted[next[list_of_[i]]++] = rows_[i];
    for (std::size_t list = 0; list + 1 < offsets.size(); ++list) {
      std::sort(sorted.begin() + offsets[list], sorted.begin() + offsets[list + 1]);
    }
    const auto count = static_cast<std::int64_t>(rows_.size());
    io::write_safetensors(
        path,
        {{"centroids", {"F16", {nearest_->count(), source_.snapshot.dim()}, std::as_bytes(std::span(centroids_))}},
         {"offsets", {"I64", {nearest_->count() + 1}, std::as_bytes(std::span(offsets))}},
         {"rows", {"I64", {count}, std::as_bytes(std::span(sorted))}}},
        {});
  }

  std::vector<std::int64_t> resume(const std::filesystem::path& path) override {
    const io::Safetensors file(path);
    const auto centroids = index_tensor<Half>(file, "centroids", "F16", 2);
    const auto offsets = index_tensor<std::int64_t>(file, "offsets", "I64", 1);
    const auto rows = index_tensor<std::int64_t>(file, "rows", "I64", 1);
    centroids_.assign(centroids.begin(), centroids.end());
    nearest_.emplace(std::span<const Half>(centroids_), source_.snapshot.dim());
    rows_.assign(rows.begin(), rows.end());
    for (std::size_t list = 0; list + 1 < offsets.size(); ++list) {
      list_of_.insert(list_of_.end(), static_cast<std::size_t>(offsets[list + 1] - offsets[list]),
                      static_cast<std::int32_t>(list));
    }
    std::vector<std::int64_t> ascending = rows_;
    std::sort(ascending.begin(), ascending.end());
    return ascending;
  }

 private:
  IndexSource source_;
  IndexBuild build_;
  std::int64_t lists_;
  std::vector<Half> centroids_;
  std::optional<Centroids> nearest_;
  std::vector<std::int64_t> rows_;
  std::vector<std::int32_t> list_of_;
};

}  // namespace

std::shared_ptr<MemoryIndex> load_lists(const std::filesystem::path& path, std::int64_t dim) {
  return std::make_shared<Lists>(path, dim);
}

std::unique_ptr<IndexBuilder> make_lists_builder(std::int64_t lists, const IndexSource& source,
                                                 const IndexBuild& build) {
  return std::make_unique<ListsBuilder>(lists, source, build);
}

}  // namespace reco
