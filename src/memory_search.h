// SPDX-License-Identifier: Apache-2.0
// Search over a snapshot: exact, or through an index where there is one, with the rows after it searched exactly.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "memory_candidates.h"
#include "memory_snapshot.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

/// The k best live rows of each unit query by inner product, best first, the lower row first among equals; where fewer
/// are left, row -1 and score 0. The same whatever the threads and whatever else is in the batch, in every kind of
/// search. `done`, if any, is told the rows that each part of the queries found, before the next part is searched.
void search_rows(const MemorySnapshot& snapshot, const Matrix& queries, const MemorySearch& search, IndexMatrix& rows,
                 Matrix& scores, const std::function<void(std::span<const std::int64_t>)>& done = {});

/// Most rows that find_similar() finds for a query.
inline constexpr std::int64_t kMostSimilar = 4'096;

/// Calls found(query, candidate, more) for every live row that is at least as similar to a unit query as that, with
/// search.k for a start; `more` where there may be others beyond the kMostSimilar best.
void find_similar(const MemorySnapshot& snapshot, const Matrix& queries, MemorySearch search, float min_similarity,
                  const std::function<void(std::int64_t query, const Candidate&, bool more)>& found);

}  // namespace reco
