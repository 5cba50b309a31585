// SPDX-License-Identifier: Apache-2.0
#include "memory_snapshot.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "io/file.h"
#include "io/npy.h"
#include "reco/error.h"

namespace reco {

namespace {

/// Files below this many bytes are copied instead of mapped.
constexpr std::int64_t kSmallFile = 256 << 10;
/// Bytes of a chunk that small shards are copied into; the system hands them out page by page.
constexpr std::int64_t kChunkBytes = 8 << 20;
/// Shards mapped at most; two maps each stay well below Linux's default limit of 65,530.
constexpr std::int64_t kMostMapped = 16'384;

std::shared_ptr<MemorySegment::Chunk> make_chunk(std::int64_t rows, std::int64_t dim) {
  auto chunk = std::make_shared<MemorySegment::Chunk>();
  chunk->capacity = std::max(rows, kChunkBytes / (dim * static_cast<std::int64_t>(sizeof(Half))));
  for (auto& side : chunk->sides) {
    side = std::make_unique_for_overwrite<Half[]>(static_cast<std::size_t>(chunk->capacity * dim));
  }
  return chunk;
}

}  // namespace

std::filesystem::path MemoryShard::file(const std::filesystem::path& folder, std::size_t side) const {
  const std::string name = side == 0 ? "img_emb" : "text_emb";
  std::string digits = std::to_string(number);
  if (digits.size() < 5) digits.insert(0, 5 - digits.size(), '0');
  return folder / name / (name + '_' + digits + ".npy");
}

const Half* shard_rows(std::span<const std::byte> file, const std::string& name, std::int64_t rows, std::int64_t dim,
                       std::int64_t bytes) {
  constexpr const char* tag = "memory.shard";
  check(static_cast<std::int64_t>(file.size()) == bytes, tag, "'", name, "' must be ", bytes, " bytes, found ",
        file.size());
  const io::NpyView array = io::read_npy(file, name);
  check(array.dtype == "<f2", tag, "'", name, "' must hold '<f2', found '", array.dtype, "'");
  const bool fits = array.shape.size() == 2 && array.shape[0] == rows && array.shape[1] == dim;
  check(fits, tag, "'", name, "' must have the shape (", rows, ", ", dim, ")");
  check(reinterpret_cast<std::uintptr_t>(array.data.data()) % alignof(Half) == 0, tag, "'", name,
        "': the data must start at an even byte");
  return reinterpret_cast<const Half*>(array.data.data());
}

const MemorySegment& MemorySnapshot::segment(std::int64_t row) const {
  const auto after = std::upper_bound(segments.begin(), segments.end(), row,
                                      [](std::int64_t r, const MemorySegment& s) { return r < s.first_row; });
  return *std::prev(after);
}

bool MemorySnapshot::live(std::int64_t row) const {
  if (row < 0 || row >= rows) return false;
  const MemorySegment& holder = segment(row);
  return !holder.removed(row - holder.first_row);
}

std::vector<std::int64_t> MemorySnapshot::live_rows() const {
  std::vector<std::int64_t> live;
  live.reserve(static_cast<std::size_t>(rows - removed));
  for (const MemorySegment& segment : segments) {
    for (std::int64_t i = 0; i < segment.rows; ++i) {
      if (!segment.removed(i)) live.push_back(segment.first_row + i);
    }
  }
  return live;
}

Matrix MemorySnapshot::gather(std::span<const std::int64_t> wanted, Modality modality) const {
  const auto count = static_cast<std::int64_t>(wanted.size());
  Matrix out(count, dim);
  std::vector<std::int64_t> order(wanted.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return wanted[a] < wanted[b]; });
  const auto row_bytes = static_cast<std::size_t>(dim) * sizeof(float);
  const MemoryKernel& kernel = memory_kernel();
#pragma omp parallel for schedule(static) if (count > 256)
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = wanted[order[i]];
    float* to = out.row(order[i]).data();
    if (i > 0 && row == wanted[order[i - 1]]) continue;  // copied by the first of its equals
    if (row < 0) {
      std::memset(to, 0, row_bytes);
    } else {
      const MemorySegment& holder = segment(row);
      kernel.widen(holder.sides[side_index(modality)] + (row - holder.first_row) * dim, dim, to);
    }
    for (std::int64_t j = i + 1; j < count && wanted[order[j]] == row; ++j) {
      std::memcpy(out.row(order[j]).data(), to, row_bytes);
    }
  }
  return out;
}

void MemorySnapshot::append(const std::filesystem::path& folder, const MemoryShard& shard) {
  struct Files {
    std::array<io::MappedFile, 2> maps;
    std::array<std::string, 2> copies;
  };
  const bool copy = shard.bytes < kSmallFile || mapped >= kMostMapped;
  const auto files = std::make_shared<Files>();
  std::array<const Half*, 2> sides{};
  for (std::size_t side = 0; side < 2; ++side) {
    const auto path = shard.file(folder, side);
    if (copy) {
      files->copies[side] = io::read_file(path, static_cast<std::size_t>(shard.bytes) + 1);
    } else {
      files->maps[side] = io::MappedFile(path);
    }
    const auto bytes = copy ? std::as_bytes(std::span(files->copies[side])) : files->maps[side].bytes();
    sides[side] = shard_rows(bytes, path.string(), shard.rows, dim, shard.bytes);
  }
  if (copy) {
    append_small(shard, sides);
  } else {
    segments.push_back(
        {.first_row = rows, .rows = shard.rows, .sides = sides, .map = files, .chunk = {}, .removed_bits = {}});
    ++mapped;
  }
  rows += shard.rows;
}

void MemorySnapshot::append_small(const MemoryShard& shard, const std::array<const Half*, 2>& sides) {
  const bool room = !segments.empty() && segments.back().chunk &&
                    segments.back().rows + shard.rows <= segments.back().chunk->capacity;
  if (!room) {
    auto chunk = make_chunk(shard.rows, dim);
    segments.push_back({.first_row = rows,
                        .rows = 0,
                        .sides = {chunk->sides[0].get(), chunk->sides[1].get()},
                        .map = {},
                        .chunk = chunk,
                        .removed_bits = {}});
  }
  MemorySegment& last = segments.back();
  for (std::size_t side = 0; side < 2; ++side) {
    std::copy_n(sides[side], shard.rows * dim, last.chunk->sides[side].get() + last.rows * dim);
  }
  last.rows += shard.rows;
}

void MemorySnapshot::remove(std::span<const std::int64_t> sorted_rows) {
  auto next = sorted_rows.begin();
  for (MemorySegment& segment : segments) {
    const std::int64_t end = segment.first_row + segment.rows;
    if (next == sorted_rows.end() || *next >= end) continue;
    auto bits = segment.removed_bits ? std::make_shared<std::vector<std::uint64_t>>(*segment.removed_bits)
                                     : std::make_shared<std::vector<std::uint64_t>>();
    bits->resize(static_cast<std::size_t>(segment.rows + 63) / 64);
    for (; next != sorted_rows.end() && *next < end; ++next) {
      const auto index = static_cast<std::uint64_t>(*next - segment.first_row);
      const std::uint64_t bit = std::uint64_t{1} << (index % 64);
      if (((*bits)[index / 64] & bit) == 0) ++removed;
      (*bits)[index / 64] |= bit;
    }
    segment.removed_bits = std::move(bits);
  }
}

}  // namespace reco
