// SPDX-License-Identifier: Apache-2.0
#include "memory_store.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <system_error>
#include <thread>

#include "io/file.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr const char* kDatabase = "memory.sqlite";
constexpr const char* kLock = "memory.lock";
constexpr const char* kHolder = "another writer has the memory open; one at a time may change it";

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail("memory.create", "cannot make the folder '", folder.string(), "': ", error.message());
}

/// True if nothing is there but what an interrupted create() left.
bool unfinished(const fs::path& folder) {
  static const std::set<std::string> ours{kLock, "memory.sqlite", "memory.sqlite-wal", "memory.sqlite-shm",
                                          "memory.sqlite-journal"};
  for (const fs::path& path : folder_entries(folder)) {
    const bool side = path.filename() == kMemorySides[0] || path.filename() == kMemorySides[1] ||
                      path.filename() == kIndexFolder || path.filename() == kNumbersFolder;
    std::error_code error;
    const bool empty = side && fs::is_directory(path, error) && folder_entries(path).empty();
    if (!empty && !ours.contains(path.filename().string())) return false;
  }
  return MemoryDatabase::unfinished(folder / kDatabase);
}

/// Without a slash at the end; stays right when the process moves to another folder.
fs::path absolute_path(const fs::path& folder) {
  std::error_code error;
  const fs::path path = fs::absolute(folder / "", error);
  return error ? folder : path.parent_path();
}

std::int64_t file_size(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<std::int64_t>(size);
}

/// Of the shards that lie elsewhere, one side.
std::int64_t bytes_elsewhere(io::Database& database) {
  if (database.integer("PRAGMA user_version") < 2) return 0;
  return database.integer("SELECT coalesce(sum(bytes), 0) FROM shards JOIN sources USING (shard)");
}

}  // namespace

std::vector<fs::path> folder_entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    found.push_back(entry->path());
  }
  if (error) fail("memory.open", "cannot list the folder '", folder.string(), "': ", error.message());
  return found;
}

void MemoryStore::create(const fs::path& folder, std::int64_t dim, Storage storage, const std::string& encoder) {
  constexpr const char* tag = "memory.create";
  check(dim >= 1 && dim <= 65'536, tag, "dim must be from 1 to 65,536, got ", dim);
  const RowFormat format(storage, dim);  // or an Error before anything is written
  make_folder(folder);
  check(unfinished(folder), tag, "the folder '", folder.string(), "' must be empty or not there yet");
  const io::FileLock lock(folder / kLock, kHolder);
  check(unfinished(folder), tag, "the folder '", folder.string(), "' was filled by another process");
  for (const char* name : {kMemorySides[0], kMemorySides[1], kIndexFolder, kNumbersFolder}) make_folder(folder / name);
  MemoryDatabase::create(folder / kDatabase, format.dim(), storage, encoder);
  io::sync_folder(folder);
  try {
    io::sync_folder(absolute_path(folder).parent_path());
  } catch (const Error&) {  // a folder that may be entered but not read cannot be synced; the memory itself is there
  }
}

MemoryStore::MemoryStore(const fs::path& folder, bool read_only, const std::string& encoder)
    : folder_(absolute_path(folder)), read_only_(read_only) {
  constexpr const char* tag = "memory.open";
  std::error_code error;
  check(fs::exists(folder / kDatabase, error), tag, "'", folder.string(), "' is no memory: it has no ", kDatabase);
  if (!read_only) lock_ = io::FileLock(folder / kLock, kHolder);
  open_reader();
  load();
  const bool same = encoder.empty() || encoder_.empty() || encoder == encoder_;
  check(same, tag, "'", folder.string(), "' must be of the encoder '", encoder, "', it is of '", encoder_, "'");
  if (read_only) return;
  writer_ = std::make_unique<MemoryDatabase>(folder / kDatabase, io::DatabaseMode::read_write);
  writer_->upgrade();
  writer_->settle();
  sweep();
}

void MemoryStore::open_reader() {
  const fs::path path = folder_ / kDatabase;
  immutable_ = false;
  try {
    reader_ =
        std::make_unique<MemoryDatabase>(path, read_only_ ? io::DatabaseMode::read_only : io::DatabaseMode::read_write);
  } catch (const Error&) {
    // Readers keep a file of shared memory beside the database. Where that is impossible nobody is writing either,
    // unless there is a log.
    if (!read_only_ || file_size(path.string() + "-wal") > 0) throw;
    reader_ = std::make_unique<MemoryDatabase>(path, io::DatabaseMode::immutable);
    immutable_ = true;
  }
}

void MemoryStore::refresh() {
  if (!read_only_) return;  // holds the lock: nobody else changes anything
  const bool written = immutable_ && file_size((folder_ / kDatabase).string() + "-wal") > 0;
  if (written) open_reader();
  if (written || reader_->data_version() != version_) load();
}

void MemoryStore::load() {
  for (int attempts = 3;; --attempts) {
    const std::int64_t version = reader_->data_version();
    try {
      load_version(version);
      return;
    } catch (const Error&) {
      // A writer may have compacted files away while they were being opened.
      if (attempts == 0 || reader_->data_version() == version) throw;
    }
  }
}

void MemoryStore::load_version(std::int64_t version) {
  io::Transaction transaction(reader_->connection(), io::Transaction::Kind::read);
  const MemoryLists lists = reader_->lists(state_, last_shard_);
  const bool first = snapshot_ == nullptr;
  auto next = first || lists.fresh ? std::make_shared<MemorySnapshot>() : std::make_shared<MemorySnapshot>(*snapshot_);
  next->format = RowFormat(lists.state.storage, lists.state.dim);
  for (const MemoryShard& shard : lists.shards) next->append(folder_, shard);
  next->generation = lists.state.generation;
  next->rows = lists.state.rows;
  next->remove(lists.removed);
  if (!first && lists.fresh) next->indexes = snapshot_->indexes;
  if (first || lists.state.indexes_digest != state_.indexes_digest) {
    next->indexes = {};
    for (const MemoryIndexFile& index : lists.indexes) {
      next->indexes[static_cast<std::size_t>(index.modality)] =
          std::make_shared<IndexSlot>(folder_, index, lists.state.dim);
    }
  }
  transaction.commit();
  if (first) {
    format_ = next->format;
    encoder_ = lists.state.encoder;
  }
  if (lists.fresh) last_shard_ = -1;
  for (const MemoryShard& shard : lists.shards) last_shard_ = std::max(last_shard_, shard.number);
  state_ = lists.state;
  snapshot_ = std::move(next);
  version_ = version;
}

MemoryDatabase& MemoryStore::reader(const char* tag) {
  check(reader_ != nullptr, tag, "the memory '", folder_.string(), "' is closed");
  return *reader_;
}

std::shared_ptr<const MemorySnapshot> MemoryStore::snapshot(const char* tag) {
  const std::lock_guard lock(read_mutex_);
  reader(tag);
  refresh();
  return snapshot_;
}

bool MemoryStore::compacted_since(const MemorySnapshot& snapshot, std::int64_t attempt) {
  constexpr std::int64_t most_attempts = 1'000;
  check_interrupt();
  {
    const std::lock_guard lock(read_mutex_);
    if (reader("memory.read").generation() == snapshot.generation || attempt == most_attempts) return false;
  }
  // This process's own compact() publishes its snapshot only after its commit.
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return true;
}

std::int64_t MemoryStore::find(const MemorySnapshot& snapshot, const std::string& key) {
  const std::lock_guard lock(read_mutex_);
  // The database may be ahead of the snapshot: what counts is which of the key's rows is live there.
  for (const std::int64_t row : reader("memory.get").find_all(key)) {
    if (snapshot.live(row)) return row;
  }
  return -1;
}

std::vector<std::int64_t> MemoryStore::find_all(std::span<const std::string> keys) {
  const std::lock_guard lock(read_mutex_);
  std::vector<std::int64_t> rows;
  for (const std::string& key : keys) {
    check_interrupt();
    const auto found = reader("memory.search").find_all(key);
    rows.insert(rows.end(), found.begin(), found.end());
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

MemoryDatabase MemoryStore::another_reader(const char* tag) {
  const std::lock_guard lock(read_mutex_);
  reader(tag);
  return {folder_ / kDatabase, immutable_ ? io::DatabaseMode::immutable : io::DatabaseMode::read_only};
}

std::vector<std::int64_t> MemoryStore::select(const std::optional<std::vector<std::string>>& keys,
                                              const std::string& where) {
  std::vector<std::int64_t> rows;
  if (!where.empty()) rows = another_reader("memory.search").select(where);
  if (!keys) return rows;
  auto wanted = find_all(*keys);
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  if (where.empty()) return wanted;
  std::vector<std::int64_t> both;
  std::set_intersection(rows.begin(), rows.end(), wanted.begin(), wanted.end(), std::back_inserter(both));
  return both;
}

std::vector<MemoryText> MemoryStore::texts(std::span<const std::int64_t> rows) {
  constexpr const char* tag = "memory.read";
  const std::lock_guard lock(read_mutex_);
  MemoryDatabase& database = reader(tag);
  refresh();
  std::vector<MemoryText> texts(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    check_interrupt();
    check(rows[i] >= -1 && rows[i] < snapshot_->rows, tag, "rows must be from -1 to ", snapshot_->rows - 1, ", got ",
          rows[i]);
    // What was removed and compacted away has no words any more, since after the snapshot even.
    if (snapshot_->place(rows[i]).segment == nullptr) continue;
    if (auto text = database.text(rows[i])) {
      texts[i] = std::move(*text);
    } else {
      check(database.generation() != snapshot_->generation, tag, "'", folder_.string(), "' is damaged: row ", rows[i],
            " is missing");
    }
  }
  return texts;
}

std::int64_t MemoryStore::bytes() {
  const std::lock_guard lock(read_mutex_);
  const std::string name = (folder_ / kDatabase).string();
  auto& database = reader("memory.info").connection();
  return 2 * database.integer("SELECT coalesce(sum(bytes), 0) FROM shards") - 2 * bytes_elsewhere(database) +
         database.integer("SELECT coalesce(sum(bytes), 0) FROM indexes") + file_size(name) + file_size(name + "-wal");
}

std::int64_t MemoryStore::attached_bytes() {
  const std::lock_guard lock(read_mutex_);
  return 2 * bytes_elsewhere(reader("memory.info").connection());
}

std::int64_t MemoryStore::shards() {
  const std::lock_guard lock(read_mutex_);
  return state_.shards;
}

void MemoryStore::close() {
  const std::scoped_lock lock(write_mutex_, read_mutex_);
  writer_.reset();
  reader_.reset();
  snapshot_.reset();
  lock_ = {};
}

bool MemoryStore::closed() {
  const std::lock_guard lock(read_mutex_);
  return reader_ == nullptr;
}

}  // namespace reco
