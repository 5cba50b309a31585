// SPDX-License-Identifier: Apache-2.0
// attach(): pairs whose embeddings stay in files elsewhere.
#include <algorithm>

#include "io/file.h"
#include "io/npy.h"
#include "io/sha256.h"
#include "memory_input.h"
#include "memory_store.h"
#include "parallel.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr const char* kTag = "memory.attach";

/// Two files as a shard, checked, with the hashes of their rows.
struct Attachment {
  MemoryShard shard;
  std::vector<std::int64_t> hashes;

  Attachment(const std::array<fs::path, 2>& files, const RowFormat& format, std::int64_t rows)
      : hashes(static_cast<std::size_t>(rows)) {
    shard.rows = rows;
    for (std::size_t side = 0; side < 2; ++side) {
      shard.sources[side] = fs::absolute(files[side]).lexically_normal().string();
      read(side, format);
    }
  }

 private:
  void read(std::size_t side, const RowFormat& format) {
    const std::string& name = shard.sources[side];
    const io::MappedFile file(name);
    const auto bytes = static_cast<std::int64_t>(file.bytes().size());
    if (side == 0) shard.bytes = bytes;
    check(bytes == shard.bytes, kTag, "the files of both sides must be of one size, '", shard.sources[0], "' has ",
          shard.bytes, " bytes, '", name, "' has ", bytes);
    const std::byte* rows = shard_rows(file.bytes(), name, format, shard.rows, bytes);
    MemoryFaults faults;
    verify_lengths(rows, shard.rows, format, name, faults);
    if (!faults.lines.empty()) fail(kTag, faults.lines[0], "; import it without leaving it in place");
    const auto size = static_cast<std::size_t>(format.bytes());
    parallel_for(shard.rows, [&](std::int64_t i) { hashes[i] ^= side_hash({rows + i * format.bytes(), size}, side); });
    shard.sha256[side] = io::sha256(file.bytes());
  }
};

}  // namespace

void MemoryStore::attach(const std::array<fs::path, 2>& files, const RowInfo& info) {
  const auto rows = static_cast<std::int64_t>(info.keys.size());
  check_info(info, rows, kTag, true);
  check(rows > 0, kTag, "keys must have one entry a row, got none");
  Attachment attached(files, format_, rows);
  const std::lock_guard lock(write_mutex_);
  MemoryDatabase& database = writer(kTag);
  std::vector<std::int64_t> left_out;
  Change change = begin_change();
  for (std::int64_t i = 0; i < rows; ++i) {
    check_interrupt();
    const std::string& key = info.keys[i];
    if (key.empty()) left_out.push_back(change.state.rows + i);
    const bool there = !key.empty() && database.find(key) >= 0;
    if (there) fail(kTag, "the key '", key, "' is already in '", folder_.string(), "'");
  }
  MemoryShard& shard = attached.shard;
  shard.number = ++change.last_shard;
  shard.first_row = change.state.rows;
  shard.end_row = shard.first_row + rows;
  change.state.add(shard);
  change.snapshot->append(folder_, shard);
  for (const std::int64_t row : left_out) change.state.remove(row);
  change.snapshot->remove(left_out);
  io::Transaction transaction(database.connection(), io::Transaction::Kind::write);
  insert_rows(database, info, attached.hashes, shard.first_row);
  database.insert_shard(shard);
  database.write_state(change.state);
  commit(transaction, std::move(change));
}

}  // namespace reco
