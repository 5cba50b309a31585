// SPDX-License-Identifier: Apache-2.0
// The folder of a memory: the lock, the database, the shards, and the snapshot that searches share.
//
//     memory.lock                   held with flock(2) by the process that may write
//     memory.sqlite                 what counts: see memory_database.cpp for its tables
//     img_emb/img_emb_00000.npy     rows of unit length, float16, [rows, dim]; never changed once written
//     text_emb/text_emb_00000.npy   the other side of the same rows
//     rows/rows_00000.npy           the numbers of its rows, int64, where compact() left gaps between them
//     index/image_0.safetensors     an index over one side: see memory_index.h; FAISS's own end with .index
//
// The table `sources` names the files of shards that lie elsewhere, see Memory::attach().
// A file that the tables `shards` and `indexes` do not name is what a killed writer left; the next writer removes it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/file.h"
#include "io/lock.h"
#include "memory_database.h"
#include "memory_snapshot.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

class BuildProgress;

/// The names of the folders of the two sides, and the beginning of their files' names.
inline constexpr std::array<const char*, 2> kMemorySides{"img_emb", "text_emb"};
/// Bytes of a shard's file at most: what add() holds in memory beside its input.
inline constexpr std::int64_t kShardBytes = 256 << 20;
inline constexpr const char* kIndexFolder = "index";
inline constexpr const char* kNumbersFolder = "rows";

IndexInfo index_info(const MemoryIndexFile& file);

/// The paths in a folder. Throws Error naming it when it cannot be read.
std::vector<std::filesystem::path> folder_entries(const std::filesystem::path& folder);

/// New files that go again unless a transaction may refer to them.
class NewFiles {
 public:
  NewFiles() = default;
  NewFiles(const NewFiles&) = delete;
  NewFiles& operator=(const NewFiles&) = delete;
  const std::filesystem::path& add(std::filesystem::path path) { return paths_.emplace_back(std::move(path)); }
  /// Before a commit: one that fails may still be found in the log by the next open.
  void keep() { paths_.clear(); }
  ~NewFiles() {
    for (const auto& path : paths_) io::remove_file(path);
  }

 private:
  std::vector<std::filesystem::path> paths_;
};

/// Puts the words of new rows into the database, numbered from `first_row` on; those without a key as removed.
void insert_rows(MemoryDatabase& database, const RowInfo& info, const std::vector<std::int64_t>& hashes,
                 std::int64_t first_row);

/// Adds a fault for every row whose length is not 1.
void verify_lengths(const std::byte* rows, std::int64_t count, const RowFormat& format, const std::string& name,
                    MemoryFaults& faults);

/// Writes rows that a snapshot has, ascending, as a new shard.
MemoryShard rewrite_rows(const MemorySnapshot& snapshot, const std::filesystem::path& folder,
                         std::span<const std::int64_t> rows, std::int64_t number, NewFiles& files);

/// Thread safe. Reading waits for other reading only, never for a change that is being written: the two use connections
/// of their own, and a change is published by swapping a pointer after its commit.
class MemoryStore {
 public:
  static std::vector<std::string> repair(const std::filesystem::path& folder);
  static void create(const std::filesystem::path& folder, std::int64_t dim, Storage storage,
                     const std::string& encoder);
  MemoryStore(const std::filesystem::path& folder, bool read_only, const std::string& encoder);

  const std::filesystem::path& folder() const { return folder_; }
  bool read_only() const { return read_only_; }
  std::int64_t dim() const { return format_.dim(); }
  const RowFormat& format() const { return format_; }
  const std::string& encoder() const { return encoder_; }

  /// The last committed state, other processes' changes included. `tag` is for the Error that a closed memory gives.
  std::shared_ptr<const MemorySnapshot> snapshot(const char* tag);

  /// The last committed state and what work(snapshot) makes of it: again where rows of the snapshot were compacted away
  /// meanwhile, which the database then does not know any more. For all that reads both.
  template <typename Work>
  auto consistently(const char* tag, const Work& work) {
    for (std::int64_t attempt = 0;; ++attempt) {
      auto current = snapshot(tag);
      auto result = work(*current);
      if (!compacted_since(*current, attempt)) return std::pair(std::move(current), std::move(result));
    }
  }

  /// The row of a key that is live in the snapshot; -1 if there is none.
  std::int64_t find(const MemorySnapshot& snapshot, const std::string& key);
  /// Every row that has or had one of the keys, ascending.
  std::vector<std::int64_t> find_all(std::span<const std::string> keys);
  /// The rows of some keys that fulfil a condition, removed ones too, ascending.
  std::vector<std::int64_t> select(const std::optional<std::vector<std::string>>& keys, const std::string& where);
  /// Empty ones for -1 and for rows that were compacted away.
  std::vector<MemoryText> texts(std::span<const std::int64_t> rows);

  /// With `replace`, pairs whose keys are there already take their place.
  void add(const MatrixView& images, const MatrixView& texts, const RowInfo& info, bool replace);
  void remove(std::span<const std::string> keys);
  void attach(const std::array<std::filesystem::path, 2>& files, const RowInfo& info);
  void compact();
  std::vector<IndexInfo> optimize(const OptimizeOptions& options, const Progress& progress);
  IndexInfo adopt_index(const std::filesystem::path& file, std::size_t side, const OptimizeOptions& options);

  std::int64_t bytes();  ///< on disk, in the folder
  std::int64_t attached_bytes();
  std::int64_t shards();  ///< pairs of files
  std::vector<std::string> verify();
  void close();
  bool closed();

 private:
  /// A state to come, while it is written.
  struct Change {
    MemoryState state;
    std::int64_t last_shard;
    std::shared_ptr<MemorySnapshot> snapshot;
  };

  void open_reader();
  void refresh();
  void load();
  void load_version(std::int64_t version);
  /// Waits a little where it says so.
  bool compacted_since(const MemorySnapshot& snapshot, std::int64_t attempt);
  MemoryDatabase& reader(const char* tag);
  /// A connection of its own: long work holds up nobody.
  MemoryDatabase another_reader(const char* tag);

  MemoryDatabase& writer(const char* tag);
  Change begin_change();
  void commit(io::Transaction& transaction, Change change);
  struct SideBuild;
  struct BuiltIndex;
  /// Builds one side's index, tunes it and makes it count.
  IndexInfo optimize_side(std::size_t side, const OptimizeOptions& options, BuildProgress& progress);
  IndexInfo drop_index(std::size_t side);
  /// The first of some kinds that reaches the recall, else the one that comes nearest.
  std::unique_ptr<BuiltIndex> build_best(SideBuild& build, const std::vector<std::string>& choices,
                                         std::mt19937_64& generator);
  std::unique_ptr<BuiltIndex> build_index(SideBuild& build, const std::string& factory, std::mt19937_64& generator);
  std::int64_t next_index_number(std::size_t side);
  /// Puts one side's index, or none, into the database, and keeps its file.
  void publish(std::size_t side, const std::optional<MemoryIndexFile>& file, NewFiles& files);
  /// Removes the files that an interrupted change left.
  void sweep();

  const std::filesystem::path folder_;
  const bool read_only_;
  RowFormat format_;
  std::string encoder_;

  std::mutex write_mutex_;  ///< taken before read_mutex_
  io::FileLock lock_;
  std::unique_ptr<MemoryDatabase> writer_;
  std::mutex optimize_mutex_;  ///< taken before write_mutex_: one optimize() at a time
  bool uncertain_ = false;     ///< a commit failed: what is on disk is known after the next open

  std::mutex read_mutex_;
  std::unique_ptr<MemoryDatabase> reader_;
  bool immutable_ = false;
  std::int64_t version_ = 0;
  MemoryState state_;
  std::int64_t last_shard_ = -1;
  std::shared_ptr<const MemorySnapshot> snapshot_;
  std::array<std::int64_t, 2> last_index_{-1, -1};  ///< numbers of index files, which are not used again
};

}  // namespace reco
