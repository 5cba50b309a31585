// SPDX-License-Identifier: Apache-2.0
// memory.sqlite: the single source of truth of a memory. What SQLite itself would not notice being damaged (a flipped
// bit in a caption, a lost row of a list) is covered by checksums of our own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "io/sqlite.h"
#include "memory_index.h"
#include "memory_snapshot.h"

namespace reco {

/// The table `meta`: what the memory is, and digests over its lists.
struct MemoryState {
  std::int64_t dim = 0;
  Storage storage = Storage::float16;
  std::string encoder;
  std::int64_t generation = 0;       ///< rises when shards are rewritten
  std::int64_t rows = 0;             ///< one after the last row number that was given out
  std::int64_t present = 0;          ///< rows in the shards
  std::int64_t removed = 0;          ///< of them
  std::uint64_t removed_digest = 0;  ///< exclusive or of a hash of every removed row's number
  std::int64_t shards = 0;
  std::string shards_digest;   ///< SHA-256 chained over the shards in their order
  std::string indexes_digest;  ///< SHA-256 over the indexes

  void add(const MemoryShard& shard);
  void remove(std::int64_t row);
  void set(const std::vector<MemoryIndexFile>& indexes);
};

/// The state with its lists, checked against their digests.
struct MemoryLists {
  MemoryState state;
  bool fresh = false;                    ///< the shards are not what follows the known ones but all of them
  std::vector<MemoryShard> shards;       ///< new ones
  std::vector<std::int64_t> removed;     ///< all of them, ascending; none if nothing has changed
  std::vector<MemoryIndexFile> indexes;  ///< all of them
};

/// The words of one row.
struct MemoryText {
  std::string key;
  std::string caption;
  std::string metadata;
};

/// A checksum of one side of a row; those of both sides together are its data_hash, by exclusive or.
std::int64_t side_hash(std::span<const std::byte> embedding, std::size_t side);

/// What verify() finds: one line a fault.
struct MemoryFaults {
  std::vector<std::string> lines;
  template <typename... Parts>
  void add(const Parts&... parts) {
    std::ostringstream line;
    (line << ... << parts);
    lines.push_back(line.str());
  }
};

/// One connection. Not thread safe.
class MemoryDatabase {
 public:
  /// Format 1 had no storage and no table of sources; a writer turns it into 2.
  static constexpr std::int64_t format = 2;

  /// Makes a new database with an empty memory in it.
  static void create(const std::filesystem::path& path, std::int64_t dim, Storage storage, const std::string& encoder);

  /// True if the file is missing or what an interrupted create() left.
  static bool unfinished(const std::filesystem::path& path);

  /// Throws Error when the file is no memory's, of a newer format or damaged.
  MemoryDatabase(const std::filesystem::path& path, io::DatabaseMode mode);

  io::Database& connection() { return database_; }
  /// Another number whenever another connection has committed since.
  std::int64_t data_version();

  /// What has changed since `known`, whose last shard was `last_shard`; all, where the generation has. Throws Error
  /// when something does not fit.
  MemoryLists lists(const MemoryState& known, std::int64_t last_shard);

  std::int64_t find(std::string_view key);                   ///< the live row of a key, -1 if there is none
  std::vector<std::int64_t> find_all(std::string_view key);  ///< removed rows that had the key too
  /// The rows, removed ones too, that fulfil an SQL condition on key, caption and metadata, ascending.
  std::vector<std::int64_t> select(const std::string& where);
  /// Removed rows keep their words; none once they are compacted away. Throws Error where they do not fit their
  /// checksum.
  std::optional<MemoryText> text(std::int64_t row);
  std::int64_t generation();  ///< as it is now, whatever snapshots say

  /// Makes a database of format 1 one of this format.
  void upgrade();

  /// Puts what the log holds into the database file, durably. A transaction of a killed writer may be in the log
  /// without ever having been synced: whoever goes on from it must not lose it to a power cut later.
  void settle();

  // Inside a write transaction:
  void insert_row(std::int64_t row, const MemoryText& text, std::int64_t data_hash);
  void insert_shard(const MemoryShard& shard);
  void remove_row(std::int64_t row);
  /// Forgets the removed rows, but for those of shards elsewhere, and puts other shards in the place of all.
  void replace_shards(const std::vector<MemoryShard>& shards);
  void write_indexes(const std::vector<MemoryIndexFile>& indexes);
  void write_state(const MemoryState& state);

  // For repair(), which cannot count on the lists:
  MemoryState unchecked_state();
  std::vector<MemoryShard> all_shards() { return shards_after(-1); }
  struct IntactRow {
    std::int64_t row;
    std::int64_t data_hash;
    bool live;
  };
  /// The rows whose words fit their checksum, ascending.
  std::vector<IntactRow> intact_rows();
  /// Every row with its key, or an empty one where it was removed.
  std::vector<std::pair<std::int64_t, std::string>> all_keys();
  std::vector<MemoryIndexFile> all_indexes() { return indexes(); }
  void delete_row(std::int64_t row);

  /// Checks the pages, the lists and every row; `number` gives the number of the i-th row of the shards.
  void verify(const std::function<std::int64_t(std::int64_t)>& number, MemoryFaults& faults);

 private:
  MemoryState state();
  std::vector<MemoryShard> shards_after(std::int64_t number);
  void read_sources(std::vector<MemoryShard>& shards);
  std::vector<std::int64_t> removed_rows();
  std::vector<MemoryIndexFile> indexes();

  /// Prepares a command on its first use; the text must be a literal.
  io::Statement& cached(const char* sql);

  io::Database database_;
  std::unordered_map<const char*, io::Statement> statements_;
};

}  // namespace reco
