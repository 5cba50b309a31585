// SPDX-License-Identifier: Apache-2.0
#include "memory_search.h"

#include <algorithm>
#include <numeric>

#include "memory_index.h"
#include "memory_kernel.h"

namespace reco {

namespace {

/// Rows scored at once: 64 rows of 512 floats stay in a core's second cache while all queries pass over them.
constexpr std::int64_t kBlockRows = 64;
/// Rows of a filter that a thread scores at once.
constexpr std::int64_t kOnlyRows = 4'096;
/// Candidates a thread keeps for the queries that scan together.
constexpr std::int64_t kMostCandidates = 1 << 20;
/// Queries that search together at least, where others are told what they found: with fewer, the rows that pass by them
/// would be read more often than they are compared.
constexpr std::int64_t kLeastGroup = 128;

/// Queries that search together. Where others are told what a group has found there are two groups or more, so that
/// they have something to do while the next one searches.
std::int64_t group_size(std::int64_t queries, std::int64_t k, bool told) {
  const std::int64_t most = std::clamp<std::int64_t>(kMostCandidates / k, 16, 1024);
  return told ? std::min(most, std::max(kLeastGroup, (queries + 1) / 2)) : most;
}

/// The blocks of a snapshot from a row on, numbered through all segments; no block crosses a segment's end.
class Blocks {
 public:
  Blocks(const MemorySnapshot& snapshot, std::int64_t first_row) {
    for (const MemorySegment& segment : snapshot.segments) {
      const std::int64_t begin = segment.index_from(first_row);
      if (begin == segment.rows) continue;
      parts_.push_back({&segment, begin, count()});
      count_ += (segment.rows - begin + kBlockRows - 1) / kBlockRows;
    }
  }
  std::int64_t count() const { return count_; }

  struct Block {
    const MemorySegment& segment;
    std::int64_t begin;  ///< in the segment
    std::int64_t rows;
  };
  Block operator[](std::int64_t block) const {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), block,
                                        [](std::int64_t b, const Part& part) { return b < part.first_block; });
    const Part& part = *std::prev(after);
    const std::int64_t begin = part.begin + (block - part.first_block) * kBlockRows;
    return {*part.segment, begin, std::min(kBlockRows, part.segment->rows - begin)};
  }

 private:
  struct Part {
    const MemorySegment* segment;
    std::int64_t begin;
    std::int64_t first_block;
  };
  std::vector<Part> parts_;
  std::int64_t count_ = 0;
};

/// What one thread works with. Allocates in the constructor only, so that no block can throw.
class Scanner {
 public:
  explicit Scanner(const QueryGroup& group)
      : group_(group),
        widened_(static_cast<std::size_t>(group.count > 1 ? kBlockRows * group.format().width() : 0)),
        scores_(static_cast<std::size_t>(kBlockRows * group.count)),
        best_(group) {}

  void scan(const Blocks::Block& block) {
    score(block);
    for (std::int64_t i = 0; i < group_.count; ++i) select(i, block);
  }

  const Candidates& best() const { return best_; }

 private:
  void score(const Blocks::Block& block) {
    const RowFormat& format = group_.format();
    std::array<const std::byte*, kBlockRows> rows;
    for (std::int64_t j = 0; j < block.rows; ++j) {
      rows[j] = block.segment.sides[group_.side()] + (block.begin + j) * format.bytes();
    }
    if (group_.count == 1) {
      format.scores_of_one(group_.prepared(0), rows.data(), block.rows, scores_.data());
    } else {
      format.scores(group_.prepared(0), group_.count, rows.data(), block.rows, widened_.data(), scores_.data(),
                    kBlockRows);
    }
  }

  void select(std::int64_t query, const Blocks::Block& block) {
    const float* scores = scores_.data() + query * kBlockRows;
    float worst = best_.worst(query);
    for (std::int64_t j = 0; j < block.rows; ++j) {
      if (!(scores[j] >= worst)) continue;
      best_.offer(query, {scores[j], block.segment.number(block.begin + j)});
      worst = best_.worst(query);
    }
  }

  const QueryGroup& group_;
  std::vector<float> widened_;
  std::vector<float> scores_;
  Candidates best_;
};

/// All rows from `first_row` on.
void scan_rows(const QueryGroup& group, std::int64_t first_row, Candidates& best) {
  const Blocks blocks(group.snapshot, first_row);
  if (blocks.count() == 0) return;
  scan_on_threads<Scanner>(
      group, blocks.count(), [&](Scanner& scanner, std::int64_t block) { scanner.scan(blocks[block]); }, best);
}

void write_results(const QueryGroup& group, const Candidates& best, IndexMatrix& rows, Matrix& scores) {
  std::vector<Candidate> sorted;
  for (std::int64_t i = 0; i < group.count; ++i) {
    const auto found = best.of(i);
    sorted.assign(found.begin(), found.end());
    std::sort(sorted.begin(), sorted.end(), better);
    for (std::int64_t j = 0; j < group.search.k; ++j) {
      const bool there = sorted[j].row != kNothing.row;
      rows(group.first + i, j) = there ? sorted[j].row : -1;
      scores(group.first + i, j) = there ? sorted[j].score : 0.0F;
    }
  }
}

/// Fewer than k were found though there may be more: an index sees a part only.
std::vector<std::int64_t> unfilled(const QueryGroup& group, const Candidates& best) {
  std::vector<std::int64_t> queries;
  for (std::int64_t i = 0; i < group.count; ++i) {
    if (best.worst(i) == kNothing.score) queries.push_back(i);
  }
  return queries;
}

/// Compares all queries with the rows that alone may be found.
void scan_only(const QueryGroup& group, Candidates& best) {
  std::vector<std::int32_t> queries(static_cast<std::size_t>(group.count));
  std::iota(queries.begin(), queries.end(), 0);
  const std::span rows(group.search.only->rows());
  const auto blocks = static_cast<std::int64_t>((rows.size() + kOnlyRows - 1) / kOnlyRows);
  const auto scan = [&](RowScanner& scanner, std::int64_t block) {
    const auto first = static_cast<std::size_t>(block * kOnlyRows);
    scanner.scan(rows.subspan(first, std::min<std::size_t>(kOnlyRows, rows.size() - first)), queries);
  };
  scan_on_threads<RowScanner>(group, blocks, scan, best);
}

/// Compares some queries of a group with every row.
void fill_exactly(const QueryGroup& group, const std::vector<std::int64_t>& queries, Candidates& best) {
  for (const std::int64_t i : queries) {
    const Matrix query = Eigen::Map<const Matrix>(group.query(i), 1, group.snapshot.dim());
    MemorySearch search = group.search;
    if (search.excluded.size() > 1) search.excluded = {search.excluded[group.first + i]};
    const QueryGroup one(group.snapshot, search, query, 0, 1);
    Candidates all(one);
    scan_rows(one, 0, all);
    best.replace(i, all.of(0));
  }
}

}  // namespace

void search_rows(const MemorySnapshot& snapshot, const Matrix& queries, const MemorySearch& search, IndexMatrix& rows,
                 Matrix& scores, const std::function<void(std::span<const std::int64_t>)>& done) {
  rows.resize(queries.rows(), search.k);
  scores.resize(queries.rows(), search.k);
  const auto& slot = snapshot.indexes[side_index(search.modality)];
  // Of few rows that may be found, an index would find next to nothing.
  const bool few = search.only && static_cast<std::int64_t>(search.only->rows().size()) <= snapshot.present / 8;
  const auto index = slot && !search.exact && !few ? slot->get() : nullptr;
  const std::int64_t size = group_size(queries.rows(), search.k, done != nullptr);
  for (std::int64_t first = 0; first < queries.rows(); first += size) {
    check_interrupt();
    const QueryGroup group(snapshot, search, queries, first, std::min(size, queries.rows() - first));
    Candidates best(group);
    if (few) {
      scan_only(group, best);
    } else {
      if (index) index->search(group, best);
      scan_rows(group, index ? slot->file().end_row : 0, best);
      if (index) fill_exactly(group, unfilled(group, best), best);
    }
    write_results(group, best, rows, scores);
    if (done) done({rows.row(first).data(), static_cast<std::size_t>(group.count * search.k)});
  }
}

void find_similar(const MemorySnapshot& snapshot, const Matrix& queries, MemorySearch search, float min_similarity,
                  const std::function<void(std::int64_t query, const Candidate&, bool more)>& found) {
  IndexMatrix rows;
  Matrix scores;
  const auto filled = [&](Eigen::Index i) {
    return rows(i, search.k - 1) >= 0 && scores(i, search.k - 1) >= min_similarity;
  };
  // As many as there are: while the last neighbour of any query is similar enough, there may be more.
  for (;; search.k *= 4) {
    search_rows(snapshot, queries, search, rows, scores);
    bool any = false;
    for (Eigen::Index i = 0; i < rows.rows(); ++i) any = any || filled(i);
    if (!any || 4 * search.k > kMostSimilar) break;
  }
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    const bool more = filled(i) && search.k < snapshot.live_count();
    for (Eigen::Index j = 0; j < rows.cols() && rows(i, j) >= 0 && scores(i, j) >= min_similarity; ++j) {
      found(i, {scores(i, j), rows(i, j)}, more);
    }
  }
}

}  // namespace reco
