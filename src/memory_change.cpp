// SPDX-License-Identifier: Apache-2.0
// Changes: shards first, durably, then one transaction that makes them count.
#include <algorithm>
#include <set>

#include "io/file.h"
#include "io/npy.h"
#include "io/sha256.h"
#include "memory_input.h"
#include "memory_store.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

/// What add() was given, checked.
struct Batch {
  std::array<MatrixView, 2> sides;
  std::array<std::vector<double>, 2> inverse_norms;
  std::int64_t rows() const { return sides[0].rows(); }
};

Batch check_batch(const MatrixView& images, const MatrixView& texts, const RowInfo& info, std::int64_t dim,
                  const char* tag) {
  const auto check_columns = [&](const MatrixView& rows, const char* name) {
    check(rows.rows() == 0 || rows.cols() == dim, tag, name, " must have ", dim, " columns, got ", rows.cols());
  };
  check_columns(images, "image embeddings");
  check_columns(texts, "text embeddings");
  check(images.rows() == texts.rows(), tag, "image and text embeddings must be pairs, got ", images.rows(), " and ",
        texts.rows(), " rows");
  check_info(info, images.rows(), tag);
  return {{images, texts},
          {inverse_norms(images, tag, "image embeddings"), inverse_norms(texts, tag, "text embeddings")}};
}

/// Writes the rows from `first` on, as many as a shard takes.
MemoryShard write_shard(const fs::path& folder, const RowFormat& format, const Batch& batch, std::int64_t first,
                        std::int64_t number, std::int64_t first_row, NewFiles& files, std::span<std::int64_t> hashes) {
  const std::int64_t most = std::max<std::int64_t>(1, kShardBytes / format.bytes());
  MemoryShard shard;
  shard.number = number;
  shard.first_row = first_row;
  shard.rows = std::min(most, batch.rows() - first);
  shard.end_row = first_row + shard.rows;
  const std::string header = io::npy_header(format.dtype(), {shard.rows, format.columns()});
  for (std::size_t side = 0; side < 2; ++side) {
    const auto rows = encoded_rows(format, batch.sides[side], batch.inverse_norms[side], first, shard.rows);
#pragma omp parallel for schedule(static) if (shard.rows > 1'000)
    for (std::int64_t i = 0; i < shard.rows; ++i) {
      hashes[first + i] ^=
          side_hash({rows.data() + i * format.bytes(), static_cast<std::size_t>(format.bytes())}, side);
    }
    const std::array parts{std::as_bytes(std::span(header)), std::span<const std::byte>(rows)};
    io::Sha256 sha;
    for (const auto part : parts) sha.update(part);
    shard.sha256[side] = sha.finish();
    shard.bytes = static_cast<std::int64_t>(parts[0].size() + parts[1].size());
    io::write_file_durably(files.add(shard.file(folder, side)), parts);
  }
  return shard;
}

}  // namespace

void insert_rows(MemoryDatabase& database, const RowInfo& info, const std::vector<std::int64_t>& hashes,
                 std::int64_t first_row) {
  MemoryText text;
  for (std::size_t i = 0; i < info.keys.size(); ++i) {
    check_interrupt();
    text.key = info.keys[i];
    text.caption = info.captions.empty() ? "" : info.captions[i];
    text.metadata = info.metadata.empty() ? "{}" : info.metadata[i];
    const std::int64_t row = first_row + static_cast<std::int64_t>(i);
    database.insert_row(row, text, hashes[i]);
    if (text.key.empty()) database.remove_row(row);  // at once: two live rows may not have one key
  }
}

namespace {

/// True for `<side>_00012.npy` and for the temporary files of such a name.
bool shard_like(const fs::path& path, const std::string& side) {
  const std::string name = path.filename().string();
  if (!name.starts_with(side + '_')) return false;
  const auto digits = name.find_first_not_of("0123456789", side.size() + 1);
  if (digits == std::string::npos || digits < side.size() + 6) return false;
  const std::string rest = name.substr(digits);
  return rest == ".npy" || rest.starts_with(".npy.tmp-");
}

/// True for `image_12.safetensors`, `text_0.index` and for the temporary files of such names.
bool index_like(const fs::path& path) {
  const std::string name = path.filename().string();
  const bool kind = name.find(".safetensors") != std::string::npos || name.find(".index") != std::string::npos;
  const bool index = name.starts_with("image_") || name.starts_with("text_");
  return kind && (index || (name.starts_with("checkpoint_") && name.find(".tmp") != std::string::npos));
}

}  // namespace

void MemoryStore::add(const MatrixView& images, const MatrixView& texts, const RowInfo& info, bool replace) {
  const char* tag = replace ? "memory.upsert" : "memory.add";
  const Batch batch = check_batch(images, texts, info, dim(), tag);
  const std::lock_guard lock(write_mutex_);
  MemoryDatabase& database = writer(tag);
  std::vector<std::int64_t> replaced;
  for (const std::string& key : info.keys) {
    check_interrupt();
    const std::int64_t row = database.find(key);
    if (row >= 0 && !replace) fail(tag, "the key '", key, "' is already in '", folder_.string(), "'");
    if (row >= 0) replaced.push_back(row);
  }
  std::sort(replaced.begin(), replaced.end());
  if (batch.rows() == 0) return;
  Change change = begin_change();
  const std::int64_t first_row = change.state.rows;
  NewFiles files;
  std::vector<MemoryShard> shards;
  std::vector<std::int64_t> hashes(info.keys.size());
  for (std::int64_t first = 0; first < batch.rows(); first += shards.back().rows) {
    check_interrupt();
    shards.push_back(
        write_shard(folder_, format_, batch, first, ++change.last_shard, change.state.rows, files, hashes));
    change.state.add(shards.back());
    change.snapshot->append(folder_, shards.back());
  }
  for (const std::int64_t row : replaced) change.state.remove(row);
  change.snapshot->remove(replaced);
  io::Transaction transaction(database.connection(), io::Transaction::Kind::write);
  for (const std::int64_t row : replaced) database.remove_row(row);
  insert_rows(database, info, hashes, first_row);
  for (const MemoryShard& shard : shards) database.insert_shard(shard);
  database.write_state(change.state);
  files.keep();
  commit(transaction, std::move(change));
}

void MemoryStore::remove(std::span<const std::string> keys) {
  constexpr const char* tag = "memory.remove";
  const std::lock_guard lock(write_mutex_);
  MemoryDatabase& database = writer(tag);
  std::set<std::int64_t> rows;
  for (const std::string& key : keys) {
    check_interrupt();
    const std::int64_t row = database.find(key);
    if (row < 0) fail(tag, "the key '", key, "' is not in '", folder_.string(), "'");
    rows.insert(row);
  }
  if (rows.empty()) return;
  Change change = begin_change();
  for (const std::int64_t row : rows) change.state.remove(row);
  change.snapshot->remove(std::vector<std::int64_t>(rows.begin(), rows.end()));
  io::Transaction transaction(database.connection(), io::Transaction::Kind::write);
  for (const std::int64_t row : rows) {
    check_interrupt();
    database.remove_row(row);
  }
  database.write_state(change.state);
  commit(transaction, std::move(change));
}

MemoryStore::Change MemoryStore::begin_change() {
  const std::lock_guard lock(read_mutex_);
  return {state_, last_shard_, std::make_shared<MemorySnapshot>(*snapshot_)};
}

void MemoryStore::commit(io::Transaction& transaction, Change change) {
  uncertain_ = true;
  transaction.commit();
  uncertain_ = false;
  const std::lock_guard lock(read_mutex_);
  state_ = std::move(change.state);
  last_shard_ = change.last_shard;
  snapshot_ = std::move(change.snapshot);
}

MemoryDatabase& MemoryStore::writer(const char* tag) {
  check(!read_only_, tag, "the memory '", folder_.string(), "' is open for reading only");
  check(writer_ != nullptr, tag, "the memory '", folder_.string(), "' is closed");
  check(!uncertain_, tag, "an earlier change of '", folder_.string(), "' failed while it was committed: open it again");
  return *writer_;
}

void MemoryStore::sweep() {
  std::set<fs::path> live;
  const MemoryLists lists = writer_->lists({}, -1);
  for (const MemoryShard& shard : lists.shards) {
    for (std::size_t side = 0; side < 2; ++side) live.insert(shard.file(folder_, side));
    live.insert(shard.numbers_file(folder_));
  }
  for (const MemoryIndexFile& index : lists.indexes) live.insert(index.file(folder_));
  std::vector<fs::path> orphans;
  for (const char* name : {kMemorySides[0], kMemorySides[1], kNumbersFolder, kIndexFolder}) {
    for (const fs::path& path : folder_entries(folder_ / name)) {
      const bool ours = name == kIndexFolder ? index_like(path) : shard_like(path, name);
      if (ours && !live.contains(path)) orphans.push_back(path);
    }
  }
  if (orphans.empty()) return;
  // The log may still hold a transaction whose commit failed and which a later recovery could bring back, together with
  // its shards. Another commit overwrites it.
  io::Transaction transaction(writer_->connection(), io::Transaction::Kind::write);
  writer_->write_state(state_);
  transaction.commit();
  for (const fs::path& path : orphans) {
    io::remove_file(path);
  }
}

}  // namespace reco
