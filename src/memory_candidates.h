// SPDX-License-Identifier: Apache-2.0
// What a search is asked, and the best that it has found so far: shared by exact search and by all indexes.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "memory_kernel.h"
#include "memory_snapshot.h"
#include "parallel.h"
#include "reco/threads.h"
#include "reco/types.h"

namespace reco {

/// A set of row numbers.
class RowSet {
 public:
  /// Of the row numbers, ascending, those that are live in a snapshot.
  RowSet(std::vector<std::int64_t> rows, const MemorySnapshot& snapshot);
  bool contains(std::int64_t row) const { return (bits_[static_cast<std::size_t>(row) / 64] >> (row % 64) & 1) != 0; }
  const std::vector<std::int64_t>& rows() const { return rows_; }

 private:
  std::vector<std::int64_t> rows_;
  std::vector<std::uint64_t> bits_;
};

struct MemorySearch {
  std::int64_t k = 10;
  Modality modality = Modality::image;
  /// Rows that must not be found, ascending: empty, one list for all queries, or one list a query.
  std::vector<std::vector<std::int64_t>> excluded{};
  std::optional<float> max_similarity{};
  bool exact = false;                    ///< use no index
  std::int64_t effort = 0;               ///< of the index; 0: its own
  std::shared_ptr<const RowSet> only{};  ///< rows that alone may be found; null: all
};

struct Candidate {
  float score;
  std::int64_t row;
};

inline constexpr Candidate kNothing{-std::numeric_limits<float>::infinity(), std::numeric_limits<std::int64_t>::max()};

inline bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

/// Queries that are searched together, padded to whole vectors of the kernel, and as the rows are compared with them.
struct QueryGroup {
  const MemorySnapshot& snapshot;
  const MemorySearch& search;
  const MemoryKernel& kernel;
  std::int64_t first;  ///< number of its first query
  std::int64_t count;
  std::int64_t padded_dim;
  std::vector<float> queries;
  std::vector<float> rotated;  ///< only where the format rotates

  QueryGroup(const MemorySnapshot& snapshot, const MemorySearch& search, const Matrix& queries, std::int64_t first,
             std::int64_t count);
  const float* query(std::int64_t i) const { return queries.data() + i * padded_dim; }
  const RowFormat& format() const { return snapshot.format; }
  /// Query `i`, and those that follow, for the scores of the format.
  const float* prepared(std::int64_t i) const {
    return (rotated.empty() ? queries.data() : rotated.data()) + i * format().width();
  }
  std::size_t side() const { return side_index(search.modality); }

  /// Whether query `i` may find a row: live, not excluded, no near-duplicate.
  bool admits(std::int64_t i, const Candidate& candidate) const;
};

/// The k best candidates of each query of a group. Allocates in the constructor only.
class Candidates {
 public:
  explicit Candidates(const QueryGroup& group);

  /// What a score must reach to change anything.
  float worst(std::int64_t query) const { return heaps_[static_cast<std::size_t>(query * k_)].score; }
  /// Takes a candidate if it is good enough and admitted.
  void offer(std::int64_t query, const Candidate& candidate);
  /// In no order; kNothing where fewer were found.
  std::span<const Candidate> of(std::int64_t query) const;
  /// Takes what another thread found for the same group.
  void merge(const Candidates& other);
  /// Takes the k of another Candidates for one query in place of its own.
  void replace(std::int64_t query, std::span<const Candidate> heap_of_query);

 private:
  std::span<Candidate> heap(std::int64_t query);
  static void take(std::span<Candidate> best, const Candidate& candidate);

  const QueryGroup* group_;
  std::int64_t k_;
  std::vector<Candidate> heaps_;  ///< one a query, the worst at its front
};

/// Runs work(scanner, item) for every item, each thread with a scanner of its own, and takes what they found.
template <typename Scanner, typename Work>
void scan_on_threads(const QueryGroup& group, std::int64_t items, const Work& work, Candidates& best) {
  const auto count = static_cast<int>(std::clamp<std::int64_t>(items, 1, threads()));
  std::vector<Scanner> scanners;
  scanners.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) scanners.emplace_back(group);
  parallel_for(
      items, [&](std::int64_t item) { work(scanners[omp_get_thread_num()], item); }, count);
  for (const Scanner& scanner : scanners) best.merge(scanner.best());
}

/// Scores rows that lie anywhere. One a thread; allocates in the constructor only.
class RowScanner {
 public:
  static constexpr std::int64_t block_rows = 64;
  explicit RowScanner(const QueryGroup& group);
  /// Offers rows to some of the queries.
  void scan(std::span<const std::int64_t> rows, std::span<const std::int32_t> queries);
  const Candidates& best() const { return best_; }

 private:
  void scan_block(std::span<const std::int64_t> rows, std::span<const std::int32_t> queries);

  const QueryGroup& group_;
  std::vector<float> queries_;
  std::vector<float> widened_;
  std::vector<float> scores_;
  Candidates best_;
};

}  // namespace reco
