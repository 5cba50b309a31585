// SPDX-License-Identifier: Apache-2.0
// Exact search over a snapshot.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "memory_snapshot.h"
#include "reco/types.h"

namespace reco {

struct ExactSearch {
  std::int64_t k = 10;
  Modality modality = Modality::image;
  /// Rows that must not be found, ascending: empty, one list for all queries, or one list a query.
  std::vector<std::vector<std::int64_t>> excluded;
  std::optional<float> max_similarity;
};

/// The k best live rows of each unit query by inner product, best first, the lower row first among equals; where fewer
/// are left, row -1 and score 0. The same whatever the threads and whatever else is in the batch.
void exact_search(const MemorySnapshot& snapshot, const Matrix& queries, const ExactSearch& search, IndexMatrix& rows,
                  Matrix& scores);

}  // namespace reco
