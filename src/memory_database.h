// SPDX-License-Identifier: Apache-2.0
// memory.sqlite: the single source of truth of a memory. What SQLite itself would not notice being damaged (a flipped
// bit in a caption, a lost row of a list) is covered by checksums of our own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/sqlite.h"
#include "memory_snapshot.h"

namespace reco {

/// The table `meta`: what the memory is, and digests over its lists.
struct MemoryState {
  std::int64_t dim = 0;
  std::string encoder;
  std::int64_t rows = 0;
  std::int64_t removed = 0;
  std::uint64_t removed_digest = 0;  ///< exclusive or of a hash of every removed row's number
  std::int64_t shards = 0;
  std::string shards_digest;  ///< SHA-256 chained over the shards in their order

  void add(const MemoryShard& shard);
  void remove(std::int64_t row);
};

/// The state with its lists, checked against their digests.
struct MemoryLists {
  MemoryState state;
  std::vector<MemoryShard> shards;    ///< new ones
  std::vector<std::int64_t> removed;  ///< all of them, ascending; none if nothing has changed
};

/// The words of one row.
struct MemoryText {
  std::string key;
  std::string caption;
  std::string metadata;
};

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
  static constexpr std::int64_t format = 1;

  /// Makes a new database with an empty memory in it.
  static void create(const std::filesystem::path& path, std::int64_t dim, const std::string& encoder);

  /// True if the file is missing or what an interrupted create() left.
  static bool unfinished(const std::filesystem::path& path);

  /// Throws Error when the file is no memory's, of a newer format or damaged.
  MemoryDatabase(const std::filesystem::path& path, io::DatabaseMode mode);

  io::Database& connection() { return database_; }
  /// Another number whenever another connection has committed since.
  std::int64_t data_version();

  /// What has changed since `known`, whose last shard was `last_shard`. Throws Error when something does not fit.
  MemoryLists lists(const MemoryState& known, std::int64_t last_shard);

  std::int64_t find(std::string_view key);                   ///< the live row of a key, -1 if there is none
  std::vector<std::int64_t> find_all(std::string_view key);  ///< removed rows that had the key too
  MemoryText text(std::int64_t row);                         ///< removed rows keep their words

  // Inside a write transaction:
  void insert_row(std::int64_t row, const MemoryText& text);
  void insert_shard(const MemoryShard& shard);
  void remove_row(std::int64_t row);
  void write_state(const MemoryState& state);

  /// Checks the pages, the indexes, the lists and every row.
  void verify(MemoryFaults& faults);

 private:
  MemoryState state();
  std::vector<MemoryShard> shards_after(std::int64_t number);
  std::vector<std::int64_t> removed_rows();

  /// Prepares a command on its first use; the text must be a literal.
  io::Statement& cached(const char* sql);

  io::Database database_;
  std::unordered_map<const char*, io::Statement> statements_;
};

}  // namespace reco
