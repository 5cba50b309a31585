// SPDX-License-Identifier: Apache-2.0
// What a search sees: the shards of one committed state. Immutable once it is shared.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory_kernel.h"
#include "reco/types.h"

namespace reco {

/// 0 for images, 1 for texts: the place of a side in the arrays below.
inline std::size_t side_index(Modality modality) { return modality == Modality::image ? 0 : 1; }

/// One row of the database's table of shards: a pair of files with the same rows.
struct MemoryShard {
  std::int64_t number = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t bytes = 0;  ///< of each file
  std::array<std::string, 2> sha256;

  /// The file of one side, in the memory's folder.
  std::filesystem::path file(const std::filesystem::path& folder, std::size_t side) const;
};

/// Consecutive rows that lie one after the other in memory: a large shard's map, or many small shards copied together,
/// since a map each would run into the system's limit on maps.
struct MemorySegment {
  struct Chunk {
    std::int64_t capacity = 0;
    std::array<std::unique_ptr<Half[]>, 2> sides;
  };

  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::array<const Half*, 2> sides{};
  std::shared_ptr<const void> map;  ///< keeps a large shard's files mapped
  std::shared_ptr<Chunk> chunk;     ///< holds small shards; later snapshots append behind `rows`
  std::shared_ptr<const std::vector<std::uint64_t>> removed_bits;  ///< a bit a row, null when none is removed

  bool removed(std::int64_t index) const {
    const auto word = static_cast<std::size_t>(index) / 64;
    return removed_bits && word < removed_bits->size() && ((*removed_bits)[word] >> (index % 64) & 1) != 0;
  }
};

struct MemorySnapshot {
  std::int64_t dim = 0;
  std::int64_t rows = 0;  ///< all rows, removed ones too: rows are numbered from 0
  std::int64_t removed = 0;
  std::int64_t mapped = 0;  ///< segments that are maps
  std::vector<MemorySegment> segments;

  /// The segment that holds a row in [0, rows).
  const MemorySegment& segment(std::int64_t row) const;
  bool live(std::int64_t row) const;

  /// The numbers of all live rows, ascending.
  std::vector<std::int64_t> live_rows() const;

  /// One side's embeddings of rows in [-1, rows), -1 giving zeros: each row is read once, in the order of the files.
  Matrix gather(std::span<const std::int64_t> rows, Modality modality) const;

  /// Opens a shard's files and appends its rows. Throws Error naming the file that does not fit the shard.
  void append(const std::filesystem::path& folder, const MemoryShard& shard);

  /// Marks rows in [0, rows), in ascending order, as removed; rows that are already are skipped.
  void remove(std::span<const std::int64_t> sorted_rows);

 private:
  void append_small(const MemoryShard& shard, const std::array<const Half*, 2>& sides);
};

/// The rows of a shard's file held in memory: checks everything but the checksum.
const Half* shard_rows(std::span<const std::byte> file, const std::string& name, std::int64_t rows, std::int64_t dim,
                       std::int64_t bytes);

}  // namespace reco
