// SPDX-License-Identifier: Apache-2.0
// repair(): every row whose words and embeddings fit their checksums is kept, whatever else is damaged.
#include <algorithm>
#include <set>
#include <system_error>

#include "io/file.h"
#include "io/npy.h"
#include "io/sha256.h"
#include "memory_store.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;
using IntactRow = MemoryDatabase::IntactRow;

constexpr const char* kTag = "memory.repair";

/// What can be read of a shard's side: as many rows as lie in the file behind a header of the right width.
struct SideRows {
  io::MappedFile file;
  const std::byte* rows = nullptr;
  std::int64_t count = 0;
};

SideRows read_side(const MemoryShard& shard, const fs::path& path, const RowFormat& format) {
  SideRows side;
  try {
    side.file = io::MappedFile(path);
  } catch (const Error&) {
    return side;
  }
  // Both the header and the data may be damaged, so their place follows from what was written once.
  const auto header = static_cast<std::int64_t>(io::npy_header(format.dtype(), {shard.rows, format.columns()}).size());
  const auto bytes = static_cast<std::int64_t>(side.file.bytes().size()) - header;
  side.rows = side.file.bytes().data() + header;
  side.count = std::clamp<std::int64_t>(bytes / format.bytes(), 0, shard.rows);
  return side;
}

/// The row numbers of a shard; where their list is damaged, those that the database has between its ends, if they are
/// as many.
std::vector<std::int64_t> numbers_of(const MemoryShard& shard, const fs::path& folder,
                                     const std::vector<IntactRow>& intact) {
  std::vector<std::int64_t> numbers;
  if (!shard.gaps()) {
    for (std::int64_t row = shard.first_row; row < shard.end_row; ++row) numbers.push_back(row);
    return numbers;
  }
  try {
    const io::MappedFile file(shard.numbers_file(folder));
    if (io::sha256(file.bytes()) == shard.numbers_sha256) {
      const auto* first = shard_numbers(file.bytes(), shard.numbers_file(folder).string(), shard);
      return {first, first + shard.rows};
    }
  } catch (const Interrupted&) {
    throw;
  } catch (const Error&) {  // the database may still know
  }
  for (const IntactRow& row : intact) {
    if (row.row >= shard.first_row && row.row < shard.end_row) numbers.push_back(row.row);
  }
  if (static_cast<std::int64_t>(numbers.size()) != shard.rows) numbers.clear();
  return numbers;
}

/// The rows of a shard that are whole, as a snapshot of their own.
struct Salvage {
  std::array<SideRows, 2> sides;
  std::vector<std::int64_t> numbers;
  std::vector<std::int64_t> whole;
  std::vector<std::int64_t> removed;  ///< whole too, but not live
  MemorySnapshot snapshot;

  Salvage(const MemoryShard& shard, const fs::path& folder, const RowFormat& format,
          const std::vector<IntactRow>& intact)
      : numbers(numbers_of(shard, folder, intact)) {
    for (std::size_t side = 0; side < 2; ++side) sides[side] = read_side(shard, shard.file(folder, side), format);
    const auto count = std::min({sides[0].count, sides[1].count, static_cast<std::int64_t>(numbers.size())});
    for (std::int64_t i = 0; i < count; ++i) {
      check_interrupt();
      const auto found = std::lower_bound(intact.begin(), intact.end(), numbers[i],
                                          [](const IntactRow& row, std::int64_t number) { return row.row < number; });
      if (found == intact.end() || found->row != numbers[i] || data_hash(i, format) != found->data_hash) continue;
      (found->live ? whole : removed).push_back(numbers[i]);
    }
    numbers.resize(static_cast<std::size_t>(count));
    if (count == 0) return;
    snapshot.format = format;
    snapshot.segments.push_back({.first_row = numbers.front(),
                                 .end_row = numbers.back() + 1,
                                 .rows = count,
                                 .numbers = numbers.data(),
                                 .sides = {sides[0].rows, sides[1].rows},
                                 .map = {},
                                 .chunk = {},
                                 .removed_bits = {}});
  }

 private:
  std::int64_t data_hash(std::int64_t i, const RowFormat& format) const {
    std::int64_t hash = 0;
    for (std::size_t side = 0; side < 2; ++side) {
      hash ^= side_hash({sides[side].rows + i * format.bytes(), static_cast<std::size_t>(format.bytes())}, side);
    }
    return hash;
  }
};

bool intact_file(const fs::path& path, std::int64_t bytes, const std::string& sha256) {
  try {
    const io::MappedFile file(path);
    return static_cast<std::int64_t>(file.bytes().size()) == bytes && io::sha256(file.bytes()) == sha256;
  } catch (const Interrupted&) {
    throw;
  } catch (const Error&) {
    return false;
  }
}

bool intact_shard(const MemoryShard& shard, const fs::path& folder, const std::vector<std::int64_t>& numbers) {
  if (shard.gaps()) {
    const fs::path path = shard.numbers_file(folder);
    std::error_code error;
    const auto bytes = fs::file_size(path, error);
    if (error || !intact_file(path, static_cast<std::int64_t>(bytes), shard.numbers_sha256)) return false;
  }
  return static_cast<std::int64_t>(numbers.size()) == shard.rows &&
         intact_file(shard.file(folder, 0), shard.bytes, shard.sha256[0]) &&
         intact_file(shard.file(folder, 1), shard.bytes, shard.sha256[1]);
}

}  // namespace

std::vector<std::string> MemoryStore::repair(const fs::path& folder) {
  std::error_code error;
  check(fs::exists(folder / "memory.sqlite", error), kTag, "'", folder.string(),
        "' is no memory: it has no memory.sqlite");
  const io::FileLock lock(folder / "memory.lock", "a process has the memory open");
  for (const char* name : {kMemorySides[0], kMemorySides[1], kNumbersFolder, kIndexFolder}) {
    fs::create_directories(folder / name, error);
  }
  MemoryDatabase database(folder / "memory.sqlite", io::DatabaseMode::read_write);
  database.upgrade();
  database.settle();
  MemoryState known = database.unchecked_state();
  check(known.dim >= 1 && known.dim <= 65'536, kTag, "'", folder.string(), "': the number of dimensions is lost");
  const RowFormat format(known.storage, known.dim);
  MemoryFaults lost;
  const std::vector<IntactRow> intact = database.intact_rows();
  std::vector<MemoryShard> shards;
  std::set<std::int64_t> kept, removed;
  NewFiles files;
  std::int64_t last = -1, end_row = known.rows;
  for (const MemoryShard& shard : database.all_shards()) last = std::max(last, shard.number);
  for (const MemoryShard& shard : database.all_shards()) {
    const bool sane = shard.number >= 0 && shard.rows >= 1 && shard.rows < std::int64_t{1} << 40 &&
                      shard.first_row >= (shards.empty() ? 0 : shards.back().end_row) &&
                      shard.rows <= shard.end_row - shard.first_row;
    if (!sane) {
      lost.add("shard ", shard.number, ": its entry in the table of shards is damaged");
      continue;
    }
    for (const std::string& source : shard.sources) {
      check(!shard.elsewhere() || fs::exists(source, error), kTag, "'", source, "' is gone: it holds rows of '",
            folder.string(), "'; put it back, or every row in it would be lost");
    }
    const Salvage salvage(shard, folder, format, intact);
    kept.insert(salvage.whole.begin(), salvage.whole.end());
    const bool all = static_cast<std::int64_t>(salvage.whole.size() + salvage.removed.size()) == shard.rows;
    if (shard.elsewhere() && all && intact_shard(shard, folder, salvage.numbers)) {
      shards.push_back(shard);
      removed.insert(salvage.removed.begin(), salvage.removed.end());
      end_row = std::max(end_row, shard.end_row);
      continue;
    }
    end_row = std::max(end_row, shard.end_row);
    if (salvage.whole.empty()) continue;
    const bool whole = static_cast<std::int64_t>(salvage.whole.size()) == shard.rows;
    if (whole && intact_shard(shard, folder, salvage.numbers)) {
      shards.push_back(shard);
    } else {
      shards.push_back(rewrite_rows(salvage.snapshot, folder, salvage.whole, ++last, files));
    }
  }

  std::vector<MemoryIndexFile> indexes;
  for (const MemoryIndexFile& index : database.all_indexes()) {
    const bool sane = (index.modality == 0 || index.modality == 1) && index.end_row >= 0 && index.end_row <= end_row &&
                      intact_file(index.file(folder), index.bytes, index.sha256);
    if (sane) indexes.push_back(index);
    if (!sane) lost.add("the index '", index.factory, "' of the ", index.modality == 0 ? "images" : "texts");
  }
  MemoryState state;
  state.dim = known.dim;
  state.storage = known.storage;
  state.encoder = known.encoder;
  state.generation = known.generation + 1;
  for (const MemoryShard& shard : shards) state.add(shard);
  state.rows = end_row;
  for (const std::int64_t row : removed) state.remove(row);
  state.set(indexes);

  io::Transaction transaction(database.connection(), io::Transaction::Kind::write);
  for (const auto& [row, key] : database.all_keys()) {
    if (kept.contains(row) || removed.contains(row)) continue;
    if (!key.empty()) lost.add("row ", row, ", the pair '", key, "'");
    database.delete_row(row);
  }
  database.replace_shards(shards);
  database.write_indexes(indexes);
  database.write_state(state);
  database.connection().execute("REINDEX");
  const std::string answer = database.connection().text("PRAGMA integrity_check");
  check(answer == "ok", kTag, "'", folder.string(), "': SQLite cannot mend memory.sqlite: ", answer);
  files.keep();
  transaction.commit();
  return std::move(lost.lines);
}

}  // namespace reco
