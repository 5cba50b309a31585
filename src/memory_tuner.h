// SPDX-License-Identifier: Apache-2.0
// How hard an index has to look: found with queries whose neighbours are known.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "memory_index.h"
#include "memory_search.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

/// Finds the settings that reach a recall. Snapshot and options must outlive it.
class Tuner {
 public:
  /// The queries are the embeddings of rows. `held`: whether the index holds them too.
  Tuner(const MemorySnapshot& snapshot, const std::vector<std::int64_t>& rows, std::size_t side,
        const OptimizeOptions& options, bool held = false);

  /// Sets effort, refine and recall of the file and returns the median seconds of one query.
  double tune(MemoryIndex& index, MemoryIndexFile& file) const;

  /// Whether a file's recall is what was asked for.
  bool reached(const MemoryIndexFile& file) const;

  /// Of the rows that are asked for, what an index takes for them where it searches as hard as it can.
  struct Identity {
    double first = 0;        ///< the share that it takes for themselves, or for rows that are equal
    double among_ten = 0;    ///< the share that it finds among the nearest ten, scored by the rows themselves
    double elsewhere = 0;    ///< the greatest share that it takes for a row a fixed distance away
    std::int64_t shift = 0;  ///< that distance
  };
  Identity identity(MemoryIndex& index) const;

 private:
  using Clock = std::chrono::steady_clock;

  double tune_effort(MemoryIndex& index, MemoryIndexFile& file, std::int64_t most) const;
  std::int64_t recall_ppm(MemoryIndex& index, std::int64_t effort, std::int64_t refine) const;
  double time_one(const MemoryIndex& index) const;
  double found_among_ten(const MemoryIndex& index) const;

  const MemorySnapshot& snapshot_;
  const OptimizeOptions& options_;
  std::vector<std::int64_t> asked_;
  MemorySearch search_;
  Matrix queries_;
  IndexMatrix truth_;
  Matrix scores_;
};

}  // namespace reco
