// SPDX-License-Identifier: Apache-2.0
#include "memory_candidates.h"

#include <algorithm>
#include <array>

namespace reco {

RowSet::RowSet(std::vector<std::int64_t> rows, const MemorySnapshot& snapshot)
    : rows_(std::move(rows)), bits_(static_cast<std::size_t>(snapshot.rows + 63) / 64 + 1) {
  std::erase_if(rows_, [&](std::int64_t row) { return !snapshot.live(row); });
  for (const std::int64_t row : rows_) bits_[static_cast<std::size_t>(row) / 64] |= std::uint64_t{1} << (row % 64);
}

QueryGroup::QueryGroup(const MemorySnapshot& snapshot_, const MemorySearch& search_, const Matrix& all,
                       std::int64_t first_, std::int64_t count_)
    : snapshot(snapshot_), search(search_), kernel(memory_kernel()), first(first_), count(count_) {
  padded_dim = kernel.padded(snapshot.dim());
  queries.resize(static_cast<std::size_t>(count * padded_dim));
  if (format().rotates()) rotated.resize(static_cast<std::size_t>(count * format().width()));
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(all.row(first + i).data(), snapshot.dim(), queries.data() + i * padded_dim);
    if (format().rotates()) format().prepare(query(i), rotated.data() + i * format().width());
  }
}

bool QueryGroup::admits(std::int64_t i, const Candidate& candidate) const {
  if (search.max_similarity && candidate.score > *search.max_similarity) return false;
  if (search.only && !search.only->contains(candidate.row)) return false;
  if (!snapshot.live(candidate.row)) return false;
  if (search.excluded.empty()) return true;
  const auto& rows = search.excluded.size() == 1 ? search.excluded[0] : search.excluded[first + i];
  return !std::binary_search(rows.begin(), rows.end(), candidate.row);
}

Candidates::Candidates(const QueryGroup& group)
    : group_(&group), k_(group.search.k), heaps_(static_cast<std::size_t>(k_ * group.count), kNothing) {}

std::span<Candidate> Candidates::heap(std::int64_t query) {
  return {heaps_.data() + query * k_, static_cast<std::size_t>(k_)};
}

std::span<const Candidate> Candidates::of(std::int64_t query) const {
  return {heaps_.data() + query * k_, static_cast<std::size_t>(k_)};
}

void Candidates::offer(std::int64_t query, const Candidate& candidate) {
  const auto best = heap(query);
  if (better(candidate, best.front()) && group_->admits(query, candidate)) take(best, candidate);
}

void Candidates::take(std::span<Candidate> best, const Candidate& candidate) {
  std::pop_heap(best.begin(), best.end(), better);
  best.back() = candidate;
  std::push_heap(best.begin(), best.end(), better);
}

void Candidates::replace(std::int64_t query, std::span<const Candidate> heap_of_query) {
  std::copy(heap_of_query.begin(), heap_of_query.end(), heap(query).begin());
}

void Candidates::merge(const Candidates& other) {
  for (std::int64_t query = 0; query < group_->count; ++query) {
    for (const Candidate& candidate : other.of(query)) {
      if (better(candidate, heap(query).front())) take(heap(query), candidate);
    }
  }
}

RowScanner::RowScanner(const QueryGroup& group)
    : group_(group),
      queries_(static_cast<std::size_t>(group.count > 1 ? group.count * group.format().width() : 0)),
      widened_(static_cast<std::size_t>(group.count > 1 ? block_rows * group.format().width() : 0)),
      scores_(static_cast<std::size_t>(block_rows * group.count)),
      best_(group) {}

void RowScanner::scan(std::span<const std::int64_t> rows, std::span<const std::int32_t> queries) {
  for (std::size_t i = 0; queries.size() > 1 && i < queries.size(); ++i) {
    const std::int64_t width = group_.format().width();
    std::copy_n(group_.prepared(queries[i]), width, queries_.data() + static_cast<std::int64_t>(i) * width);
  }
  for (std::size_t first = 0; first < rows.size(); first += block_rows) {
    scan_block(rows.subspan(first, std::min<std::size_t>(block_rows, rows.size() - first)), queries);
  }
}

void RowScanner::scan_block(std::span<const std::int64_t> rows, std::span<const std::int32_t> queries) {
  std::array<const std::byte*, block_rows> data;
  std::array<std::int64_t, block_rows> numbers;
  std::int64_t count = 0;
  for (const std::int64_t row : rows) {
    data[count] = group_.snapshot.row_data(row, group_.side());
    numbers[count] = row;
    if (data[count] != nullptr) ++count;
  }
  if (queries.size() == 1) {
    group_.format().scores_of_one(group_.prepared(queries[0]), data.data(), count, scores_.data());
  } else {
    group_.format().scores(queries_.data(), static_cast<std::int64_t>(queries.size()), data.data(), count,
                           widened_.data(), scores_.data(), block_rows);
  }
  for (std::size_t i = 0; i < queries.size(); ++i) {
    for (std::int64_t j = 0; j < count; ++j) {
      const float score = scores_[i * block_rows + static_cast<std::size_t>(j)];
      if (score >= best_.worst(queries[i])) best_.offer(queries[i], {score, numbers[j]});
    }
  }
}

}  // namespace reco
