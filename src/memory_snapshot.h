// SPDX-License-Identifier: Apache-2.0
// What a search sees: the shards of one committed state. Immutable once it is shared.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory_rows.h"
#include "reco/types.h"

namespace reco {

/// 0 for images, 1 for texts: the place of a side in the arrays below.
inline std::size_t side_index(Modality modality) { return modality == Modality::image ? 0 : 1; }

/// One row of the database's table of shards: a pair of files with the same rows.
struct MemoryShard {
  std::int64_t number = 0;
  std::int64_t first_row = 0;
  std::int64_t end_row = 0;  ///< one after its last row
  std::int64_t rows = 0;
  std::int64_t bytes = 0;  ///< of each file
  std::array<std::string, 2> sha256;
  std::string numbers_sha256;            ///< empty where the rows are all from first_row to end_row
  std::array<std::string, 2> sources{};  ///< absolute paths of files that lie elsewhere; empty: in the memory's folder

  bool elsewhere() const { return !sources[0].empty(); }
  /// The file of one side.
  std::filesystem::path file(const std::filesystem::path& folder, std::size_t side) const;
  /// The file of the row numbers, where some are missing.
  std::filesystem::path numbers_file(const std::filesystem::path& folder) const;
  bool gaps() const { return !numbers_sha256.empty(); }
};

/// Consecutive rows that lie one after the other in memory: a large shard's map, or many small shards copied together,
/// since a map each would run into the system's limit on maps.
struct MemorySegment {
  struct Chunk {
    std::int64_t capacity = 0;
    std::array<std::unique_ptr<std::byte[]>, 2> sides;
  };

  std::int64_t first_row = 0;
  std::int64_t end_row = 0;
  std::int64_t rows = 0;
  const std::int64_t* numbers = nullptr;  ///< of its rows, ascending, where some are missing between them
  std::array<const std::byte*, 2> sides{};
  std::shared_ptr<const void> map;  ///< keeps a large shard's files mapped
  std::shared_ptr<Chunk> chunk;     ///< holds small shards; later snapshots append behind `rows`
  std::shared_ptr<const std::vector<std::uint64_t>> removed_bits;  ///< a bit a row, null when none is removed

  std::int64_t number(std::int64_t index) const { return numbers == nullptr ? first_row + index : numbers[index]; }
  /// How many rows come before this number.
  std::int64_t index_from(std::int64_t row) const;
  /// The place of a row number; -1 if it is not here.
  std::int64_t index_of(std::int64_t row) const {
    if (row < first_row || row >= end_row) return -1;
    if (numbers == nullptr) return row - first_row;
    const std::int64_t index = index_from(row);
    return index < rows && numbers[index] == row ? index : -1;
  }
  bool removed(std::int64_t index) const {
    const auto word = static_cast<std::size_t>(index) / 64;
    return removed_bits && word < removed_bits->size() && ((*removed_bits)[word] >> (index % 64) & 1) != 0;
  }
};

class IndexSlot;

struct MemorySnapshot {
  RowFormat format;
  std::int64_t generation = 0;  ///< of its state: another one where rows were compacted away since
  std::int64_t rows = 0;     ///< one after the last row number that was given out: rows are numbered from 0, for ever
  std::int64_t present = 0;  ///< rows in the files
  std::int64_t removed = 0;  ///< of them
  std::int64_t mapped = 0;   ///< segments that are maps
  std::vector<MemorySegment> segments;
  std::array<std::shared_ptr<const IndexSlot>, 2> indexes;  ///< one a side, null: none

  /// Where a row lies.
  struct Place {
    const MemorySegment* segment = nullptr;  ///< null: nowhere, it was removed and compacted away
    std::int64_t index = 0;
  };
  Place place(std::int64_t row) const {
    const auto after = std::upper_bound(segments.begin(), segments.end(), row,
                                        [](std::int64_t r, const MemorySegment& s) { return r < s.first_row; });
    if (after == segments.begin()) return {};
    const MemorySegment& holder = *std::prev(after);
    const std::int64_t index = holder.index_of(row);
    return index < 0 ? Place{} : Place{&holder, index};
  }
  bool live(std::int64_t row) const {
    const Place found = place(row);
    return found.segment != nullptr && !found.segment->removed(found.index);
  }
  std::int64_t dim() const { return format.dim(); }
  std::int64_t live_count() const { return present - removed; }

  /// One side's embedding of a row as it lies there; null if it is nowhere.
  const std::byte* row_data(std::int64_t row, std::size_t side) const {
    const Place found = place(row);
    return found.segment == nullptr ? nullptr : found.segment->sides[side] + found.index * format.bytes();
  }

  /// The numbers of all live rows, ascending.
  std::vector<std::int64_t> live_rows() const;

  /// One side's embeddings of rows, zeros for those that are nowhere: each row is read once, in the order of the files.
  Matrix gather(std::span<const std::int64_t> rows, Modality modality) const;

  /// Asks the system to read what gather() will want of mapped files while other work goes on; returns at once.
  void prefetch(std::span<const std::int64_t> rows, Modality modality) const;

  /// Opens a shard's files and appends its rows. Throws Error naming the file that does not fit the shard.
  void append(const std::filesystem::path& folder, const MemoryShard& shard);

  /// Marks rows in [0, rows), in ascending order, as removed; rows that are already are skipped.
  void remove(std::span<const std::int64_t> sorted_rows);

 private:
  void append_small(const MemoryShard& shard, const std::array<const std::byte*, 2>& sides);
};

/// The rows of a shard's file held in memory: checks everything but the checksum.
const std::byte* shard_rows(std::span<const std::byte> file, const std::string& name, const RowFormat& format,
                            std::int64_t rows, std::int64_t bytes);

/// The row numbers of a shard with gaps, checked.
const std::int64_t* shard_numbers(std::span<const std::byte> file, const std::string& name, const MemoryShard& shard);

}  // namespace reco
