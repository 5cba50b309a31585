// SPDX-License-Identifier: Apache-2.0
#include "memory_search.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "memory_kernel.h"
#include "reco/threads.h"

namespace reco {

namespace {

/// Rows scored at once: 64 rows of 512 floats stay in a core's second cache while all queries pass over them.
constexpr std::int64_t kBlockRows = 64;
/// Candidates a thread keeps for the queries that scan together.
constexpr std::int64_t kMostCandidates = 1 << 20;

struct Candidate {
  float score;
  std::int64_t row;
};

constexpr Candidate kNothing{-std::numeric_limits<float>::infinity(), std::numeric_limits<std::int64_t>::max()};

bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

/// The blocks of a snapshot, numbered through all segments; no block crosses a segment's end.
class Blocks {
 public:
  explicit Blocks(const MemorySnapshot& snapshot) : snapshot_(snapshot) {
    for (const MemorySegment& segment : snapshot.segments) {
      ends_.push_back(count() + (segment.rows + kBlockRows - 1) / kBlockRows);
    }
  }
  std::int64_t count() const { return ends_.empty() ? 0 : ends_.back(); }

  struct Block {
    const MemorySegment& segment;
    std::int64_t begin;  ///< in the segment
    std::int64_t rows;
  };
  Block operator[](std::int64_t block) const {
    const auto end = std::upper_bound(ends_.begin(), ends_.end(), block);
    const MemorySegment& segment = snapshot_.segments[static_cast<std::size_t>(end - ends_.begin())];
    const std::int64_t begin = (block - (end == ends_.begin() ? 0 : *std::prev(end))) * kBlockRows;
    return {segment, begin, std::min(kBlockRows, segment.rows - begin)};
  }

 private:
  const MemorySnapshot& snapshot_;
  std::vector<std::int64_t> ends_;
};

/// One group of queries, padded to whole vectors.
struct Group {
  const MemorySnapshot& snapshot;
  const ExactSearch& search;
  const MemoryKernel& kernel;
  std::int64_t first;  ///< number of its first query
  std::int64_t count;
  std::int64_t padded_dim;
  std::vector<float> queries;

  bool excluded(std::int64_t query, std::int64_t row) const {
    if (search.excluded.empty()) return false;
    const auto& rows = search.excluded.size() == 1 ? search.excluded[0] : search.excluded[first + query];
    return std::binary_search(rows.begin(), rows.end(), row);
  }
};

Group make_group(const MemorySnapshot& snapshot, const ExactSearch& search, const Matrix& queries, std::int64_t first,
                 std::int64_t count) {
  const MemoryKernel& kernel = memory_kernel();
  const std::int64_t padded = (snapshot.dim + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  Group group{snapshot, search, kernel, first, count, padded, {}};
  group.queries.resize(static_cast<std::size_t>(count * padded));
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(queries.row(first + i).data(), snapshot.dim, group.queries.data() + i * padded);
  }
  return group;
}

/// What one thread works with. Allocates in the constructor only, so that no block can throw.
class Worker {
 public:
  explicit Worker(const Group& group)
      : group_(group),
        widened_(static_cast<std::size_t>(kBlockRows * group.padded_dim)),
        scores_(static_cast<std::size_t>(kBlockRows * group.count)),
        best_(static_cast<std::size_t>(group.search.k * group.count), kNothing) {}

  void scan(const Blocks::Block& block) {
    score(block);
    for (std::int64_t i = 0; i < group_.count; ++i) select(i, block);
  }

  /// The k candidates of a query, a heap with the worst at its front.
  std::span<Candidate> best(std::int64_t query) {
    const auto k = static_cast<std::size_t>(group_.search.k);
    return {best_.data() + static_cast<std::size_t>(query) * k, k};
  }

 private:
  void score(const Blocks::Block& block) {
    const std::int64_t dim = group_.snapshot.dim;
    const Half* rows = block.segment.sides[side_index(group_.search.modality)] + block.begin * dim;
    if (group_.count == 1 && dim == group_.padded_dim) {
      group_.kernel.scores_of_one(group_.queries.data(), rows, block.rows, dim, scores_.data());
      return;
    }
    if (dim == group_.padded_dim) {
      group_.kernel.widen(rows, block.rows * dim, widened_.data());
    } else {
      for (std::int64_t j = 0; j < block.rows; ++j) {
        group_.kernel.widen(rows + j * dim, dim, widened_.data() + j * group_.padded_dim);
      }
    }
    group_.kernel.scores(group_.queries.data(), group_.count, widened_.data(), block.rows, group_.padded_dim,
                         scores_.data(), kBlockRows);
  }

  void select(std::int64_t query, const Blocks::Block& block) {
    const auto heap = best(query);
    const float* scores = scores_.data() + query * kBlockRows;
    const float limit = group_.search.max_similarity.value_or(std::numeric_limits<float>::infinity());
    float worst = heap.front().score;
    for (std::int64_t j = 0; j < block.rows; ++j) {
      if (!(scores[j] >= worst) || scores[j] > limit) continue;
      const Candidate candidate{scores[j], block.segment.first_row + block.begin + j};
      if (!better(candidate, heap.front()) || block.segment.removed(block.begin + j)) continue;
      if (group_.excluded(query, candidate.row)) continue;
      std::pop_heap(heap.begin(), heap.end(), better);
      heap.back() = candidate;
      std::push_heap(heap.begin(), heap.end(), better);
      worst = heap.front().score;
    }
  }

  const Group& group_;
  std::vector<float> widened_;
  std::vector<float> scores_;
  std::vector<Candidate> best_;
};

/// The best of all threads' candidates, into the results.
void merge(std::vector<Worker>& workers, const Group& group, IndexMatrix& rows, Matrix& scores) {
  std::vector<Candidate> all;
  for (std::int64_t i = 0; i < group.count; ++i) {
    all.clear();
    for (Worker& worker : workers) {
      const auto best = worker.best(i);
      all.insert(all.end(), best.begin(), best.end());
    }
    std::partial_sort(all.begin(), all.begin() + group.search.k, all.end(), better);
    for (std::int64_t j = 0; j < group.search.k; ++j) {
      const bool found = all[j].row != kNothing.row;
      rows(group.first + i, j) = found ? all[j].row : -1;
      scores(group.first + i, j) = found ? all[j].score : 0.0F;
    }
  }
}

void search_group(const Group& group, const Blocks& blocks, IndexMatrix& rows, Matrix& scores) {
  const auto count = static_cast<int>(std::clamp<std::int64_t>(blocks.count(), 1, threads()));
  std::vector<Worker> workers;
  workers.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) workers.emplace_back(group);
#pragma omp parallel for schedule(dynamic) num_threads(count)
  for (std::int64_t block = 0; block < blocks.count(); ++block) workers[omp_get_thread_num()].scan(blocks[block]);
  merge(workers, group, rows, scores);
}

}  // namespace

void exact_search(const MemorySnapshot& snapshot, const Matrix& queries, const ExactSearch& search, IndexMatrix& rows,
                  Matrix& scores) {
  rows.resize(queries.rows(), search.k);
  scores.resize(queries.rows(), search.k);
  const Blocks blocks(snapshot);
  const std::int64_t size = std::clamp<std::int64_t>(kMostCandidates / search.k, 16, 1024);
  for (std::int64_t first = 0; first < queries.rows(); first += size) {
    const std::int64_t count = std::min(size, queries.rows() - first);
    search_group(make_group(snapshot, search, queries, first, count), blocks, rows, scores);
  }
}

}  // namespace reco
