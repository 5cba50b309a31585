// SPDX-License-Identifier: Apache-2.0
#include "memory_database.h"

#include <array>
#include <charconv>
#include <map>
#include <span>
#include <type_traits>

#include "io/sha256.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kApplicationId = 0x7265636f;  // "reco"

// As SQLite stores them: open() compares. `live` is 1, and NULL once the row is removed: then the key is free again,
// since NULLs differ from each other in a unique index.
constexpr std::array<const char*, 6> kSchema{
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE shards (shard INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, end_row INTEGER NOT NULL, "
    "rows INTEGER NOT NULL, bytes INTEGER NOT NULL, image_sha256 TEXT NOT NULL, text_sha256 TEXT NOT NULL, "
    "numbers_sha256 TEXT NOT NULL)",
    "CREATE TABLE rows (row INTEGER PRIMARY KEY, key TEXT NOT NULL, caption TEXT NOT NULL, metadata TEXT NOT NULL, "
    "live INTEGER DEFAULT 1, hash INTEGER NOT NULL, data_hash INTEGER NOT NULL, UNIQUE (key, live))",
    "CREATE TABLE indexes (modality INTEGER PRIMARY KEY, number INTEGER NOT NULL, factory TEXT NOT NULL, "
    "end_row INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, "
    "effort INTEGER NOT NULL, refine INTEGER NOT NULL, recall_ppm INTEGER NOT NULL)",
    "CREATE INDEX removed_rows ON rows (row) WHERE live IS NULL",
    "CREATE TABLE sources (shard INTEGER PRIMARY KEY, image TEXT NOT NULL, text TEXT NOT NULL)"};

/// The tables of a format: the last one came with format 2.
std::span<const char* const> schema_of(std::int64_t version) {
  return std::span(kSchema).first(version < 2 ? kSchema.size() - 1 : kSchema.size());
}

/// Joins values so that no two lists of values give the same text.
template <typename... Values>
std::string joined(const Values&... values) {
  std::string text;
  const auto append = [&](const auto& value) {
    const std::string part = [&] {
      if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(value)>>) {
        return std::to_string(value);
      } else {
        return std::string(value);
      }
    }();
    text += std::to_string(part.size()) + ':' + part;
  };
  (append(values), ...);
  return text;
}

std::string digest(const std::string& text) { return io::sha256(std::as_bytes(std::span(text))); }

std::int64_t row_hash(std::int64_t row, const MemoryText& text) {
  const std::string digits = digest(joined(row, text.key, text.caption, text.metadata)).substr(0, 16);
  std::uint64_t value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  return static_cast<std::int64_t>(value);
}

std::string checksum(const MemoryState& s) {
  std::string text = joined(s.dim, s.encoder, s.generation, s.rows, s.present, s.removed, s.removed_digest, s.shards,
                            s.shards_digest, s.indexes_digest);
  // As format 1 had it where its storage is meant.
  if (s.storage != Storage::float16) text += joined(storage_name(s.storage));
  return digest(text);
}

/// A whole text as a number; -1 if it is none.
std::int64_t number(const std::string& text) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? value : -1;
}

void put_state(io::Database& database, const MemoryState& s) {
  io::Statement statement = database.prepare("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)");
  const auto put = [&](const char* name, const std::string& value) { statement.bind(1, name).bind(2, value).run(); };
  put("dim", std::to_string(s.dim));
  put("storage", storage_name(s.storage));
  put("encoder", s.encoder);
  put("generation", std::to_string(s.generation));
  put("rows", std::to_string(s.rows));
  put("present", std::to_string(s.present));
  put("removed", std::to_string(s.removed));
  put("removed_digest", std::to_string(static_cast<std::int64_t>(s.removed_digest)));
  put("shards", std::to_string(s.shards));
  put("shards_digest", s.shards_digest);
  put("indexes_digest", s.indexes_digest);
  put("checksum", checksum(s));
}

std::vector<std::string> schema(io::Database& database) {
  std::vector<std::string> found;
  io::Statement statement = database.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid");
  while (statement.step()) found.push_back(statement.text(0));
  return found;
}

io::Database open_checked(const fs::path& path, io::DatabaseMode mode) {
  constexpr const char* tag = "memory.open";
  io::Database database(path, mode);
  const auto id = database.integer("PRAGMA application_id");
  check(id == kApplicationId, tag, "'", path.string(), "' is no memory's database: application id ", id, ", expected ",
        kApplicationId);
  const auto version = database.integer("PRAGMA user_version");
  check(version >= 1 && version <= MemoryDatabase::format, tag, "'", path.string(), "' has format ", version,
        ", this version of reco reads formats up to ", MemoryDatabase::format);
  const auto expected = schema_of(version);
  check(schema(database) == std::vector<std::string>(expected.begin(), expected.end()), tag, "'", path.string(),
        "' is damaged: its tables are not those of format ", version);
  database.execute("PRAGMA cache_size = -32768");
  return database;
}

}  // namespace

std::int64_t side_hash(std::span<const std::byte> embedding, std::size_t side) {
  const std::string digits = io::sha256(embedding).substr(16 * side, 16);
  std::uint64_t value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  return static_cast<std::int64_t>(value);
}

void MemoryState::add(const MemoryShard& shard) {
  rows = shard.end_row;
  present += shard.rows;
  ++shards;
  shards_digest = digest(joined(shards_digest, shard.number, shard.first_row, shard.end_row, shard.rows, shard.bytes,
                                shard.sha256[0], shard.sha256[1], shard.numbers_sha256));
  if (shard.elsewhere()) shards_digest = digest(joined(shards_digest, shard.sources[0], shard.sources[1]));
}

void MemoryState::remove(std::int64_t row) {
  ++removed;
  // The finisher of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
  auto hash = (static_cast<std::uint64_t>(row) + 1) * 0x9e3779b97f4a7c15U;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9U;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111ebU;
  removed_digest ^= hash ^ hash >> 31;
}

void MemoryState::set(const std::vector<MemoryIndexFile>& indexes) {
  indexes_digest.clear();
  for (const MemoryIndexFile& i : indexes) {
    indexes_digest = digest(joined(indexes_digest, i.modality, i.number, i.factory, i.end_row, i.rows, i.bytes,
                                   i.sha256, i.effort, i.refine, i.recall_ppm));
  }
}

void MemoryDatabase::create(const fs::path& path, std::int64_t dim, Storage storage, const std::string& encoder) {
  io::Database database(path, io::DatabaseMode::create);
  database.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
  io::Transaction transaction(database, io::Transaction::Kind::write);
  for (const char* sql : kSchema) database.execute(sql);
  database.execute(("PRAGMA application_id = " + std::to_string(kApplicationId)).c_str());
  database.execute(("PRAGMA user_version = " + std::to_string(format)).c_str());
  MemoryState state;
  state.dim = dim;
  state.storage = storage;
  state.encoder = encoder;
  put_state(database, state);
  transaction.commit();
}

bool MemoryDatabase::unfinished(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return true;
  try {
    io::Database database(path, io::DatabaseMode::read_write);
    return schema(database).empty();
  } catch (const Error&) {
    return false;  // somebody else's file
  }
}

MemoryDatabase::MemoryDatabase(const fs::path& path, io::DatabaseMode mode) : database_(open_checked(path, mode)) {
  if (mode == io::DatabaseMode::read_write) {
    database_.execute("PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864");
  }
}

void MemoryDatabase::upgrade() {
  if (database_.integer("PRAGMA user_version") == format) return;
  io::Transaction transaction(database_, io::Transaction::Kind::write);
  database_.execute(kSchema.back());
  database_.execute("PRAGMA user_version = 2");
  transaction.commit();
}

void MemoryDatabase::settle() { database_.integer("PRAGMA wal_checkpoint(TRUNCATE)"); }

io::Statement& MemoryDatabase::cached(const char* sql) {
  const auto found = statements_.find(sql);
  return found != statements_.end() ? found->second : statements_.emplace(sql, database_.prepare(sql)).first->second;
}

std::int64_t MemoryDatabase::data_version() {
  io::Statement& statement = cached("PRAGMA data_version");
  statement.step();
  const std::int64_t version = statement.integer(0);
  statement.reset();
  return version;
}

MemoryState MemoryDatabase::state() {
  std::map<std::string, std::string> values;
  io::Statement statement = database_.prepare("SELECT name, value FROM meta");
  while (statement.step()) values[statement.text(0)] = statement.text(1);
  MemoryState state;
  state.dim = number(values["dim"]);
  // Format 1 had no storage.
  state.storage = values.contains("storage") ? parse_storage(values["storage"]) : Storage::float16;
  state.encoder = values["encoder"];
  state.generation = number(values["generation"]);
  state.rows = number(values["rows"]);
  state.present = number(values["present"]);
  state.removed = number(values["removed"]);
  state.removed_digest = static_cast<std::uint64_t>(number(values["removed_digest"]));
  state.shards = number(values["shards"]);
  state.shards_digest = values["shards_digest"];
  state.indexes_digest = values["indexes_digest"];
  const bool intact = values.size() >= 11 && values["checksum"] == checksum(state) && state.dim >= 1 &&
                      state.dim <= 65'536 && state.rows >= 0 && state.present >= 0 && state.removed >= 0;
  check(intact, "memory.open", "'", database_.path().string(), "' is damaged: table meta does not fit its checksum");
  return state;
}

MemoryState MemoryDatabase::unchecked_state() {
  MemoryState state;
  io::Statement statement = database_.prepare("SELECT name, value FROM meta");
  while (statement.step()) {
    if (statement.text(0) == "dim") state.dim = number(statement.text(1));
    if (statement.text(0) == "storage") state.storage = parse_storage(statement.text(1));
    if (statement.text(0) == "encoder") state.encoder = statement.text(1);
    if (statement.text(0) == "generation") state.generation = number(statement.text(1));
    if (statement.text(0) == "rows") state.rows = number(statement.text(1));
  }
  return state;
}

std::vector<MemoryDatabase::IntactRow> MemoryDatabase::intact_rows() {
  std::vector<IntactRow> rows;
  io::Statement statement =
      database_.prepare("SELECT row, key, caption, metadata, hash, data_hash, live FROM rows ORDER BY row");
  while (statement.step()) {
    const std::int64_t row = statement.integer(0);
    const MemoryText text{statement.text(1), statement.text(2), statement.text(3)};
    if (row_hash(row, text) == statement.integer(4)) rows.push_back({row, statement.integer(5), !statement.null(6)});
  }
  return rows;
}

std::vector<std::pair<std::int64_t, std::string>> MemoryDatabase::all_keys() {
  std::vector<std::pair<std::int64_t, std::string>> keys;
  io::Statement statement = database_.prepare("SELECT row, key, live FROM rows ORDER BY row");
  while (statement.step()) keys.emplace_back(statement.integer(0), statement.null(2) ? "" : statement.text(1));
  return keys;
}

void MemoryDatabase::delete_row(std::int64_t row) { cached("DELETE FROM rows WHERE row = ?").bind(1, row).run(); }

std::vector<MemoryShard> MemoryDatabase::shards_after(std::int64_t after) {
  std::vector<MemoryShard> shards;
  io::Statement statement = database_.prepare(
      "SELECT shard, first_row, end_row, rows, bytes, image_sha256, text_sha256, numbers_sha256 FROM shards "
      "WHERE shard > ? ORDER BY first_row");
  statement.bind(1, after);
  while (statement.step()) {
    shards.push_back({.number = statement.integer(0),
                      .first_row = statement.integer(1),
                      .end_row = statement.integer(2),
                      .rows = statement.integer(3),
                      .bytes = statement.integer(4),
                      .sha256 = {statement.text(5), statement.text(6)},
                      .numbers_sha256 = statement.text(7),
                      .sources = {}});
  }
  read_sources(shards);
  return shards;
}

void MemoryDatabase::read_sources(std::vector<MemoryShard>& shards) {
  if (shards.empty() || database_.integer("PRAGMA user_version") < 2) return;
  std::map<std::int64_t, std::array<std::string, 2>> sources;
  io::Statement statement = database_.prepare("SELECT shard, image, text FROM sources");
  while (statement.step()) sources[statement.integer(0)] = {statement.text(1), statement.text(2)};
  for (MemoryShard& shard : shards) {
    const auto found = sources.find(shard.number);
    if (found != sources.end()) shard.sources = found->second;
  }
}

std::vector<MemoryIndexFile> MemoryDatabase::indexes() {
  std::vector<MemoryIndexFile> indexes;
  io::Statement s = database_.prepare(
      "SELECT modality, number, factory, end_row, rows, bytes, sha256, effort, refine, recall_ppm FROM indexes "
      "ORDER BY modality");
  while (s.step()) {
    indexes.push_back({.modality = s.integer(0),
                       .number = s.integer(1),
                       .factory = s.text(2),
                       .end_row = s.integer(3),
                       .rows = s.integer(4),
                       .bytes = s.integer(5),
                       .sha256 = s.text(6),
                       .effort = s.integer(7),
                       .refine = s.integer(8),
                       .recall_ppm = s.integer(9)});
  }
  return indexes;
}

std::vector<std::int64_t> MemoryDatabase::removed_rows() {
  std::vector<std::int64_t> rows;
  io::Statement statement = database_.prepare("SELECT row FROM rows WHERE live IS NULL ORDER BY row");
  while (statement.step()) rows.push_back(statement.integer(0));
  return rows;
}

MemoryLists MemoryDatabase::lists(const MemoryState& known, std::int64_t last_shard) {
  constexpr const char* tag = "memory.open";
  const std::string name = database_.path().string();
  MemoryLists lists{.state = state(), .fresh = false, .shards = {}, .removed = {}, .indexes = indexes()};
  lists.fresh = lists.state.generation != known.generation;
  lists.shards = shards_after(lists.fresh ? -1 : last_shard);
  MemoryState reached = lists.fresh ? MemoryState{} : known;
  for (const MemoryShard& shard : lists.shards) {
    constexpr std::int64_t most = std::int64_t{1} << 40;
    const std::int64_t span = shard.end_row - shard.first_row;
    const bool fits = shard.number >= 0 && shard.first_row >= reached.rows && shard.rows >= 1 &&
                      shard.end_row <= most && shard.rows <= span && shard.bytes >= 1 &&
                      shard.gaps() == (shard.rows != span);
    check(fits, tag, "'", name, "' is damaged: table shards, shard ", shard.number);
    reached.add(shard);
  }
  const bool whole = reached.rows <= lists.state.rows && reached.present == lists.state.present &&
                     reached.shards == lists.state.shards && reached.shards_digest == lists.state.shards_digest;
  check(whole, tag, "'", name, "' is damaged: table shards does not fit its checksum");
  reached.set(lists.indexes);
  bool sound = reached.indexes_digest == lists.state.indexes_digest;
  for (const MemoryIndexFile& index : lists.indexes) {
    sound = sound && (index.modality == 0 || index.modality == 1) && index.end_row >= 0 &&
            index.end_row <= lists.state.rows;
  }
  check(sound, tag, "'", name, "' is damaged: table indexes does not fit its checksum");
  if (reached.removed == lists.state.removed && reached.removed_digest == lists.state.removed_digest) return lists;
  lists.removed = removed_rows();
  MemoryState removed;
  for (const std::int64_t row : lists.removed) removed.remove(row);
  const bool same = removed.removed == lists.state.removed && removed.removed_digest == lists.state.removed_digest;
  const bool inside = lists.removed.empty() || (lists.removed.front() >= 0 && lists.removed.back() < lists.state.rows);
  check(same && inside, tag, "'", name, "' is damaged: the removed rows do not fit their checksum");
  return lists;
}

std::int64_t MemoryDatabase::find(std::string_view key) {
  io::Statement& statement = cached("SELECT row FROM rows WHERE key = ? AND live = 1");
  const std::int64_t row = statement.bind(1, key).step() ? statement.integer(0) : -1;
  statement.reset();
  return row;
}

std::vector<std::int64_t> MemoryDatabase::find_all(std::string_view key) {
  std::vector<std::int64_t> rows;
  io::Statement& statement = cached("SELECT row FROM rows WHERE key = ?");
  statement.bind(1, key);
  while (statement.step()) rows.push_back(statement.integer(0));
  statement.reset();
  return rows;
}

std::vector<std::int64_t> MemoryDatabase::select(const std::string& where) {
  constexpr const char* tag = "memory.search";
  std::vector<std::int64_t> rows;
  try {
    io::Statement statement =
        database_.prepare_restricted("SELECT row FROM rows WHERE (" + where + "\n) ORDER BY row", "rows");
    while (statement.step()) rows.push_back(statement.integer(0));
  } catch (const Interrupted&) {
    throw;
  } catch (const Error& error) {
    fail(tag, "the condition '", where, "': ", error.what());
  }
  return rows;
}

std::optional<MemoryText> MemoryDatabase::text(std::int64_t row) {
  io::Statement& statement = cached("SELECT key, caption, metadata, hash FROM rows WHERE row = ?");
  MemoryText text;
  std::int64_t hash = 0;
  const bool found = statement.bind(1, row).step();
  if (found) {
    text = {statement.text(0), statement.text(1), statement.text(2)};
    hash = statement.integer(3);
  }
  statement.reset();
  if (!found) return std::nullopt;
  check(hash == row_hash(row, text), "memory.read", "'", database_.path().string(), "' is damaged: row ", row,
        " does not fit its checksum");
  return text;
}

std::int64_t MemoryDatabase::generation() {
  io::Statement& statement = cached("SELECT value FROM meta WHERE name = 'generation'");
  const std::int64_t value = statement.step() ? number(statement.text(0)) : -1;
  statement.reset();
  return value;
}

void MemoryDatabase::insert_row(std::int64_t row, const MemoryText& text, std::int64_t data_hash) {
  io::Statement& statement =
      cached("INSERT INTO rows (row, key, caption, metadata, hash, data_hash) VALUES (?, ?, ?, ?, ?, ?)");
  statement.bind(1, row).bind(2, text.key).bind(3, text.caption).bind(4, text.metadata);
  statement.bind(5, row_hash(row, text)).bind(6, data_hash).run();
}

void MemoryDatabase::insert_shard(const MemoryShard& shard) {
  io::Statement& statement = cached("INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  statement.bind(1, shard.number).bind(2, shard.first_row).bind(3, shard.end_row).bind(4, shard.rows);
  statement.bind(5, shard.bytes).bind(6, shard.sha256[0]).bind(7, shard.sha256[1]).bind(8, shard.numbers_sha256).run();
  if (!shard.elsewhere()) return;
  cached("INSERT INTO sources VALUES (?, ?, ?)")
      .bind(1, shard.number)
      .bind(2, shard.sources[0])
      .bind(3, shard.sources[1])
      .run();
}

void MemoryDatabase::replace_shards(const std::vector<MemoryShard>& shards) {
  // What is removed of a shard elsewhere stays in its file, and so do its words.
  database_.execute(
      "DELETE FROM rows WHERE live IS NULL AND NOT EXISTS (SELECT 1 FROM shards JOIN sources USING (shard) "
      "WHERE row >= first_row AND row < end_row)");
  database_.execute("DELETE FROM shards");
  database_.execute("DELETE FROM sources");
  for (const MemoryShard& shard : shards) insert_shard(shard);
}

void MemoryDatabase::remove_row(std::int64_t row) {
  cached("UPDATE rows SET live = NULL WHERE row = ?").bind(1, row).run();
}

void MemoryDatabase::write_indexes(const std::vector<MemoryIndexFile>& indexes) {
  database_.execute("DELETE FROM indexes");
  io::Statement statement = database_.prepare("INSERT INTO indexes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  for (const MemoryIndexFile& i : indexes) {
    statement.bind(1, i.modality).bind(2, i.number).bind(3, i.factory).bind(4, i.end_row).bind(5, i.rows);
    statement.bind(6, i.bytes).bind(7, i.sha256).bind(8, i.effort).bind(9, i.refine).bind(10, i.recall_ppm).run();
  }
}

void MemoryDatabase::write_state(const MemoryState& state) { put_state(database_, state); }

void MemoryDatabase::verify(const std::function<std::int64_t(std::int64_t)>& number, MemoryFaults& faults) {
  const std::string name = database_.path().string();
  io::Statement pages = database_.prepare("PRAGMA integrity_check");
  while (pages.step()) {
    if (pages.text(0) != "ok") faults.add("'", name, "': ", pages.text(0));
  }
  const std::int64_t rows = state().present;
  std::int64_t count = 0;
  io::Statement statement = database_.prepare("SELECT row, key, caption, metadata, hash, live FROM rows ORDER BY row");
  for (; statement.step(); ++count) {
    const std::int64_t row = statement.integer(0);
    if (count < rows && row != number(count)) {
      faults.add("'", name, "': expected row ", number(count), ", found ", row);
      return;
    }
    const MemoryText text{statement.text(1), statement.text(2), statement.text(3)};
    const bool intact = row_hash(row, text) == statement.integer(4) && (statement.null(5) || statement.integer(5) == 1);
    if (!intact) faults.add("'", name, "': row ", row, " does not fit its checksum");
  }
  if (count != rows) faults.add("'", name, "': expected ", rows, " rows, found ", count);
}

}  // namespace reco
