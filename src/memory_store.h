// SPDX-License-Identifier: Apache-2.0
// The folder of a memory: the lock, the database, the shards, and the snapshot that searches share.
//
//     memory.lock                   held with flock(2) by the process that may write
//     memory.sqlite                 what counts: see memory_database.cpp for its tables
//     img_emb/img_emb_00000.npy     rows of unit length, float16, [rows, dim]; never changed once written
//     text_emb/text_emb_00000.npy   the other side of the same rows
//
// A shard that the table `shards` does not name is what a killed writer left; the next writer removes it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "io/lock.h"
#include "memory_database.h"
#include "memory_snapshot.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

/// The names of the folders of the two sides, and the beginning of their files' names.
inline constexpr std::array<const char*, 2> kMemorySides{"img_emb", "text_emb"};

/// The paths in a folder. Throws Error naming it when it cannot be read.
std::vector<std::filesystem::path> folder_entries(const std::filesystem::path& folder);

/// Thread safe. Reading waits for other reading only, never for a change that is being written: the two use connections
/// of their own, and a change is published by swapping a pointer after its commit.
class MemoryStore {
 public:
  static void create(const std::filesystem::path& folder, std::int64_t dim, const std::string& encoder);
  MemoryStore(const std::filesystem::path& folder, bool read_only, const std::string& encoder);

  const std::filesystem::path& folder() const { return folder_; }
  bool read_only() const { return read_only_; }
  std::int64_t dim() const { return dim_; }
  const std::string& encoder() const { return encoder_; }

  /// The last committed state, other processes' changes included. `tag` is for the Error that a closed memory gives.
  std::shared_ptr<const MemorySnapshot> snapshot(const char* tag);

  /// The row of a key that is live in the snapshot; -1 if there is none.
  std::int64_t find(const MemorySnapshot& snapshot, const std::string& key);
  /// Every row that has or had one of the keys, ascending.
  std::vector<std::int64_t> find_all(std::span<const std::string> keys);
  std::vector<MemoryText> texts(std::span<const std::int64_t> rows);

  void add(const MatrixView& images, const MatrixView& texts, const RowInfo& info);
  void remove(std::span<const std::string> keys);

  std::int64_t bytes();   ///< on disk
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
  MemoryDatabase& reader(const char* tag);

  MemoryDatabase& writer(const char* tag);
  Change begin_change();
  void commit(io::Transaction& transaction, Change change);
  /// Removes the files that an interrupted add() left.
  void sweep();

  const std::filesystem::path folder_;
  const bool read_only_;
  std::int64_t dim_ = 0;
  std::string encoder_;

  std::mutex write_mutex_;  ///< taken before read_mutex_
  io::FileLock lock_;
  std::unique_ptr<MemoryDatabase> writer_;
  bool uncertain_ = false;  ///< a commit failed: what is on disk is known after the next open

  std::mutex read_mutex_;
  std::unique_ptr<MemoryDatabase> reader_;
  bool immutable_ = false;
  std::int64_t version_ = 0;
  MemoryState state_;
  std::int64_t last_shard_ = -1;
  std::shared_ptr<const MemorySnapshot> snapshot_;
};

}  // namespace reco
