// SPDX-License-Identifier: Apache-2.0
// compact(): shards that hold removed rows, and small ones beside each other, are written anew. Row numbers stay.
#include <algorithm>

#include "io/file.h"
#include "io/npy.h"
#include "io/sha256.h"
#include "memory_store.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

/// Files below this many bytes are joined with their neighbours.
constexpr std::int64_t kSmallBytes = 32 << 20;

using Parts = std::vector<std::span<const std::byte>>;

std::string write_npy(const fs::path& path, const std::string& dtype, const std::vector<std::int64_t>& shape,
                      const Parts& data, std::int64_t& bytes) {
  const std::string header = io::npy_header(dtype, shape);
  Parts parts{std::as_bytes(std::span(header))};
  parts.insert(parts.end(), data.begin(), data.end());
  io::Sha256 sha;
  bytes = 0;
  for (const auto part : parts) {
    check_interrupt();
    sha.update(part), bytes += static_cast<std::int64_t>(part.size());
  }
  io::write_file_durably(path, parts);
  return sha.finish();
}

/// The embeddings of rows where they lie, neighbours as one part.
Parts parts_of(const MemorySnapshot& snapshot, std::span<const std::int64_t> rows, std::size_t side) {
  const auto size = static_cast<std::size_t>(snapshot.format.bytes());
  Parts parts;
  for (const std::int64_t row : rows) {
    const std::byte* data = snapshot.row_data(row, side);
    if (!parts.empty() && parts.back().data() + parts.back().size() == data) {
      parts.back() = {parts.back().data(), parts.back().size() + size};
    } else {
      parts.emplace_back(data, size);
    }
  }
  return parts;
}

}  // namespace

MemoryShard rewrite_rows(const MemorySnapshot& snapshot, const fs::path& folder, std::span<const std::int64_t> rows,
                         std::int64_t number, NewFiles& files) {
  const auto count = static_cast<std::int64_t>(rows.size());
  MemoryShard shard;
  shard.number = number;
  shard.first_row = rows.front();
  shard.end_row = rows.back() + 1;
  shard.rows = count;
  for (std::size_t side = 0; side < 2; ++side) {
    shard.sha256[side] = write_npy(files.add(shard.file(folder, side)), snapshot.format.dtype(),
                                   {count, snapshot.format.columns()}, parts_of(snapshot, rows, side), shard.bytes);
  }
  if (shard.end_row - shard.first_row == count) return shard;
  std::int64_t ignored = 0;
  shard.numbers_sha256 =
      write_npy(files.add(shard.numbers_file(folder)), "<i8", {count}, {std::as_bytes(rows)}, ignored);
  return shard;
}

namespace {

/// Shards that are written anew together; the rows that they keep.
struct Group {
  std::vector<MemoryShard> shards;
  std::vector<std::int64_t> rows;
  bool worthwhile() const {
    std::int64_t before = 0;
    for (const MemoryShard& shard : shards) before += shard.rows;
    return shards.size() > 1 || static_cast<std::int64_t>(rows.size()) < before;
  }
};

std::vector<std::int64_t> live_rows(const MemorySnapshot& snapshot, const MemoryShard& shard) {
  std::vector<std::int64_t> rows;
  for (auto next = std::lower_bound(snapshot.segments.begin(), snapshot.segments.end(), shard.first_row,
                                    [](const MemorySegment&s, std::int64_t row) { return s.end_row <= row; });
       next != snapshot.segments.end() && next->first_row < shard.end_row; ++next) {
    const std::int64_t end = next->index_from(shard.end_row);
    for (std::int64_t i = next->index_from(shard.first_row); i < end; ++i) {
      if (!next->removed(i)) rows.push_back(next->number(i));
    }
  }
  return rows;
}

}  // namespace

void MemoryStore::compact() {
  const std::lock_guard lock(write_mutex_);
  MemoryDatabase& database = writer("memory.compact");
  Change change = begin_change();
  const auto before = std::const_pointer_cast<const MemorySnapshot>(change.snapshot);
  const MemoryLists lists = database.lists({}, -1);
  const std::int64_t most = std::max<std::int64_t>(1, kShardBytes / format_.bytes());
  NewFiles files;
  std::vector<MemoryShard> shards;
  std::vector<fs::path> replaced;
  Group group;
  const auto close_group = [&] {
    if (!group.worthwhile()) {
      shards.insert(shards.end(), group.shards.begin(), group.shards.end());
    } else {
      for (const MemoryShard& shard : group.shards) {
        replaced.insert(replaced.end(), {shard.file(folder_, 0), shard.file(folder_, 1), shard.numbers_file(folder_)});
      }
      for (std::size_t first = 0; first < group.rows.size(); first += static_cast<std::size_t>(most)) {
        const auto rows = std::span(group.rows).subspan(first, std::min<std::size_t>(most, group.rows.size() - first));
        shards.push_back(rewrite_rows(*before, folder_, rows, ++change.last_shard, files));
      }
    }
    group = {};
  };
  for (const MemoryShard& shard : lists.shards) {
    if (shard.elsewhere()) {
      close_group();
      shards.push_back(shard);
      continue;
    }
    auto rows = live_rows(*before, shard);
    const bool whole = static_cast<std::int64_t>(rows.size()) == shard.rows && shard.bytes >= kSmallBytes;
    if (whole) close_group();
    group.shards.push_back(shard);
    group.rows.insert(group.rows.end(), rows.begin(), rows.end());
    if (whole || static_cast<std::int64_t>(group.rows.size()) >= most) close_group();
  }
  close_group();
  if (replaced.empty()) return;

  auto after = std::make_shared<MemorySnapshot>();
  after->format = format_;
  after->indexes = before->indexes;
  MemoryState state;
  state.dim = dim();
  state.storage = format_.storage();
  state.encoder = encoder_;
  state.generation = change.state.generation + 1;
  state.indexes_digest = change.state.indexes_digest;
  after->generation = state.generation;
  for (const MemoryShard& shard : shards) {
    after->append(folder_, shard);
    state.add(shard);
  }
  after->rows = state.rows = change.state.rows;
  std::vector<std::int64_t> still_there;
  for (const std::int64_t row : lists.removed) {
    if (after->place(row).segment != nullptr) still_there.push_back(row);
  }
  for (const std::int64_t row : still_there) state.remove(row);
  after->remove(still_there);
  change.state = std::move(state);
  change.snapshot = std::move(after);
  io::Transaction transaction(database.connection(), io::Transaction::Kind::write);
  database.replace_shards(shards);
  database.write_state(change.state);
  files.keep();
  commit(transaction, std::move(change));
  for (const fs::path& path : replaced) io::remove_file(path);
}

}  // namespace reco
