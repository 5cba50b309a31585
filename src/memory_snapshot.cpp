// SPDX-License-Identifier: Apache-2.0
#include "memory_snapshot.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "io/file.h"
#include "io/npy.h"
#include "parallel.h"
#include "reco/error.h"

namespace reco {

namespace {

/// Files below this many bytes are copied instead of mapped.
constexpr std::int64_t kSmallFile = 256 << 10;
/// Bytes of a chunk that small shards are copied into; the system hands them out page by page.
constexpr std::int64_t kChunkBytes = 8 << 20;
/// Shards mapped at most; two maps each stay well below Linux's default limit of 65,530.
constexpr std::int64_t kMostMapped = 16'384;
/// Rows that a thread gathers at once.
constexpr std::int64_t kGatheredRows = 256;

std::shared_ptr<MemorySegment::Chunk> make_chunk(std::int64_t rows, std::int64_t row_bytes) {
  auto chunk = std::make_shared<MemorySegment::Chunk>();
  chunk->capacity = std::max(rows, kChunkBytes / row_bytes);
  for (auto& side : chunk->sides) {
    side = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(chunk->capacity * row_bytes));
  }
  return chunk;
}

}  // namespace

namespace {

std::filesystem::path shard_path(const std::filesystem::path& folder, const std::string& name, std::int64_t number) {
  std::string digits = std::to_string(number);
  if (digits.size() < 5) digits.insert(0, 5 - digits.size(), '0');
  return folder / name / (name + '_' + digits + ".npy");
}

}  // namespace

std::filesystem::path MemoryShard::file(const std::filesystem::path& folder, std::size_t side) const {
  if (elsewhere()) return sources[side];
  return shard_path(folder, side == 0 ? "img_emb" : "text_emb", number);
}

std::filesystem::path MemoryShard::numbers_file(const std::filesystem::path& folder) const {
  return shard_path(folder, "rows", number);
}

const std::byte* shard_rows(std::span<const std::byte> file, const std::string& name, const RowFormat& format,
                            std::int64_t rows, std::int64_t bytes) {
  constexpr const char* tag = "memory.shard";
  check(static_cast<std::int64_t>(file.size()) == bytes, tag, "'", name, "' must be ", bytes, " bytes, found ",
        file.size());
  const io::NpyView array = io::read_npy(file, name);
  check(array.dtype == format.dtype(), tag, "'", name, "' must hold '", format.dtype(), "', found '", array.dtype, "'");
  const bool fits = array.shape.size() == 2 && array.shape[0] == rows && array.shape[1] == format.columns();
  check(fits, tag, "'", name, "' must have the shape (", rows, ", ", format.columns(), ")");
  check(reinterpret_cast<std::uintptr_t>(array.data.data()) % alignof(Half) == 0, tag, "'", name,
        "': the data must start at an even byte");
  return array.data.data();
}

std::int64_t MemorySegment::index_from(std::int64_t row) const {
  if (numbers == nullptr) return std::clamp<std::int64_t>(row - first_row, 0, rows);
  return std::lower_bound(numbers, numbers + rows, row) - numbers;
}

std::vector<std::int64_t> MemorySnapshot::live_rows() const {
  std::vector<std::int64_t> live;
  live.reserve(static_cast<std::size_t>(live_count()));
  for (const MemorySegment& segment : segments) {
    for (std::int64_t i = 0; i < segment.rows; ++i) {
      if (!segment.removed(i)) live.push_back(segment.number(i));
    }
  }
  return live;
}

Matrix MemorySnapshot::gather(std::span<const std::int64_t> wanted, Modality modality) const {
  const auto count = static_cast<std::int64_t>(wanted.size());
  Matrix out(count, dim());
  std::vector<std::int64_t> order(wanted.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return wanted[a] < wanted[b]; });
  const auto row_bytes = static_cast<std::size_t>(dim()) * sizeof(float);
  const auto read = [&](std::int64_t i) {
    const std::int64_t row = wanted[order[i]];
    float* to = out.row(order[i]).data();
    if (i > 0 && row == wanted[order[i - 1]]) return;  // copied by the first of its equals
    const std::byte* data = row_data(row, side_index(modality));
    if (data == nullptr) {
      std::memset(to, 0, row_bytes);
    } else {
      format.decode(data, to);
    }
    for (std::int64_t j = i + 1; j < count && wanted[order[j]] == row; ++j) {
      std::memcpy(out.row(order[j]).data(), to, row_bytes);
    }
  };
  const auto read_block = [&](std::int64_t block) {
    const std::int64_t end = std::min(count, (block + 1) * kGatheredRows);
    for (std::int64_t i = block * kGatheredRows; i < end; ++i) read(i);
  };
  parallel_for((count + kGatheredRows - 1) / kGatheredRows, read_block);
  return out;
}

void MemorySnapshot::prefetch(std::span<const std::int64_t> wanted, Modality modality) const {
  static const auto page_bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  std::vector<std::uintptr_t> pages;
  for (const std::int64_t row : wanted) {
    const Place found = place(row);
    if (found.segment == nullptr || !found.segment->map) continue;
    const auto begin = reinterpret_cast<std::uintptr_t>(found.segment->sides[side_index(modality)]) +
                       static_cast<std::uintptr_t>(found.index * format.bytes());
    const std::uintptr_t end = begin + static_cast<std::uintptr_t>(format.bytes());
    for (std::uintptr_t page = begin / page_bytes; page * page_bytes < end; ++page) pages.push_back(page);
  }
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  for (std::size_t i = 0, next = 0; i < pages.size(); i = next) {
    while (next < pages.size() && pages[next] - pages[i] == next - i) ++next;
    // Advice: where it fails, gather() waits for the disk, as it would have.
    madvise(reinterpret_cast<void*>(pages[i] * page_bytes), (next - i) * page_bytes, MADV_WILLNEED);
  }
}

namespace {

/// The files of a shard, mapped, or copied where they are small.
struct ShardFiles {
  std::array<io::MappedFile, 3> maps;
  std::array<std::string, 3> copies;

  std::span<const std::byte> open(std::size_t place, const std::filesystem::path& path, bool copy,
                                  std::int64_t most_bytes) {
    if (copy) {
      copies[place] = io::read_file(path, static_cast<std::size_t>(most_bytes) + 1);
      return std::as_bytes(std::span(copies[place]));
    }
    maps[place] = io::MappedFile(path);
    return maps[place].bytes();
  }
};

}  // namespace

const std::int64_t* shard_numbers(std::span<const std::byte> file, const std::string& name, const MemoryShard& shard) {
  constexpr const char* tag = "memory.shard";
  const io::NpyView array = io::read_npy(file, name);
  const bool fits = array.dtype == "<i8" && array.shape == std::vector<std::int64_t>{shard.rows} &&
                    reinterpret_cast<std::uintptr_t>(array.data.data()) % alignof(std::int64_t) == 0;
  check(fits, tag, "'", name, "' must hold ", shard.rows, " numbers of '<i8'");
  const auto* numbers = reinterpret_cast<const std::int64_t*>(array.data.data());
  bool rising = numbers[0] == shard.first_row && numbers[shard.rows - 1] == shard.end_row - 1;
  for (std::int64_t i = 1; i < shard.rows; ++i) rising = rising && numbers[i - 1] < numbers[i];
  check(rising, tag, "'", name, "' must rise from ", shard.first_row, " to ", shard.end_row - 1);
  return numbers;
}

void MemorySnapshot::append(const std::filesystem::path& folder, const MemoryShard& shard) {
  const bool copy = shard.bytes < kSmallFile || mapped >= kMostMapped;
  const auto files = std::make_shared<ShardFiles>();
  std::array<const std::byte*, 2> sides{};
  for (std::size_t side = 0; side < 2; ++side) {
    const auto path = shard.file(folder, side);
    std::error_code ignored;
    check(!shard.elsewhere() || std::filesystem::exists(path, ignored), "memory.open", "'", path.string(),
          "' is gone: it holds rows of '", folder.string(), "' and must stay where it was");
    sides[side] =
        shard_rows(files->open(side, path, copy, shard.bytes), path.string(), format, shard.rows, shard.bytes);
  }
  if (copy && !shard.gaps()) {
    append_small(shard, sides);
  } else {
    MemorySegment segment{.first_row = shard.first_row,
                          .end_row = shard.end_row,
                          .rows = shard.rows,
                          .numbers = nullptr,
                          .sides = sides,
                          .map = files,
                          .chunk = {},
                          .removed_bits = {}};
    if (shard.gaps()) {
      const auto path = shard.numbers_file(folder);
      segment.numbers = shard_numbers(files->open(2, path, copy, shard.rows * 8 + 4096), path.string(), shard);
    }
    segments.push_back(std::move(segment));
    mapped += !copy;
  }
  rows = shard.end_row;
  present += shard.rows;
}

void MemorySnapshot::append_small(const MemoryShard& shard, const std::array<const std::byte*, 2>& sides) {
  const bool room = !segments.empty() && segments.back().chunk && segments.back().end_row == shard.first_row &&
                    segments.back().rows + shard.rows <= segments.back().chunk->capacity;
  if (!room) {
    auto chunk = make_chunk(shard.rows, format.bytes());
    segments.push_back({.first_row = shard.first_row,
                        .end_row = shard.first_row,
                        .rows = 0,
                        .numbers = nullptr,
                        .sides = {chunk->sides[0].get(), chunk->sides[1].get()},
                        .map = {},
                        .chunk = chunk,
                        .removed_bits = {}});
  }
  MemorySegment& last = segments.back();
  for (std::size_t side = 0; side < 2; ++side) {
    std::copy_n(sides[side], shard.rows * format.bytes(), last.chunk->sides[side].get() + last.rows * format.bytes());
  }
  last.rows += shard.rows;
  last.end_row += shard.rows;
}

void MemorySnapshot::remove(std::span<const std::int64_t> sorted_rows) {
  auto next = sorted_rows.begin();
  for (MemorySegment& segment : segments) {
    if (next == sorted_rows.end() || *next >= segment.end_row) continue;
    auto bits = segment.removed_bits ? std::make_shared<std::vector<std::uint64_t>>(*segment.removed_bits)
                                     : std::make_shared<std::vector<std::uint64_t>>();
    bits->resize(static_cast<std::size_t>(segment.rows + 63) / 64);
    for (; next != sorted_rows.end() && *next < segment.end_row; ++next) {
      const std::int64_t place = segment.index_of(*next);
      if (place < 0) continue;
      const auto index = static_cast<std::uint64_t>(place);
      const std::uint64_t bit = std::uint64_t{1} << (index % 64);
      if (((*bits)[index / 64] & bit) == 0) ++removed;
      (*bits)[index / 64] |= bit;
    }
    segment.removed_bits = std::move(bits);
  }
}

}  // namespace reco
