// SPDX-License-Identifier: Apache-2.0
#include "memory_database.h"

#include <array>
#include <charconv>
#include <map>
#include <span>
#include <type_traits>

#include "io/sha256.h"
#include "reco/error.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kApplicationId = 0x7265636f;  // "reco"

// As SQLite stores them: open() compares. `live` is 1, and NULL once the row is removed: then the key is free again,
// since NULLs differ from each other in a unique index.
constexpr std::array<const char*, 4> kSchema{
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE shards (shard INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, rows INTEGER NOT NULL, "
    "bytes INTEGER NOT NULL, image_sha256 TEXT NOT NULL, text_sha256 TEXT NOT NULL)",
    "CREATE TABLE rows (row INTEGER PRIMARY KEY, key TEXT NOT NULL, caption TEXT NOT NULL, metadata TEXT NOT NULL, "
    "live INTEGER DEFAULT 1, hash INTEGER NOT NULL, UNIQUE (key, live))",
    "CREATE INDEX removed_rows ON rows (row) WHERE live IS NULL"};

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
  return digest(joined(s.dim, s.encoder, s.rows, s.removed, s.removed_digest, s.shards, s.shards_digest));
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
  put("encoder", s.encoder);
  put("rows", std::to_string(s.rows));
  put("removed", std::to_string(s.removed));
  put("removed_digest", std::to_string(static_cast<std::int64_t>(s.removed_digest)));
  put("shards", std::to_string(s.shards));
  put("shards_digest", s.shards_digest);
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
  check(schema(database) == std::vector<std::string>(kSchema.begin(), kSchema.end()), tag, "'", path.string(),
        "' is damaged: its tables are not those of format ", version);
  database.execute("PRAGMA cache_size = -32768");
  return database;
}

}  // namespace

void MemoryState::add(const MemoryShard& shard) {
  rows += shard.rows;
  ++shards;
  shards_digest = digest(
      joined(shards_digest, shard.number, shard.first_row, shard.rows, shard.bytes, shard.sha256[0], shard.sha256[1]));
}

void MemoryState::remove(std::int64_t row) {
  ++removed;
  // The finisher of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
  auto hash = (static_cast<std::uint64_t>(row) + 1) * 0x9e3779b97f4a7c15U;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9U;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111ebU;
  removed_digest ^= hash ^ hash >> 31;
}

void MemoryDatabase::create(const fs::path& path, std::int64_t dim, const std::string& encoder) {
  io::Database database(path, io::DatabaseMode::create);
  database.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
  io::Transaction transaction(database, io::Transaction::Kind::write);
  for (const char* sql : kSchema) database.execute(sql);
  database.execute(("PRAGMA application_id = " + std::to_string(kApplicationId)).c_str());
  database.execute(("PRAGMA user_version = " + std::to_string(format)).c_str());
  MemoryState state;
  state.dim = dim;
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
  state.encoder = values["encoder"];
  state.rows = number(values["rows"]);
  state.removed = number(values["removed"]);
  state.removed_digest = static_cast<std::uint64_t>(number(values["removed_digest"]));
  state.shards = number(values["shards"]);
  state.shards_digest = values["shards_digest"];
  const bool intact = values.size() == 8 && values["checksum"] == checksum(state) && state.dim >= 1 &&
                      state.dim <= 65'536 && state.rows >= 0 && state.removed >= 0;
  check(intact, "memory.open", "'", database_.path().string(), "' is damaged: table meta does not fit its checksum");
  return state;
}

std::vector<MemoryShard> MemoryDatabase::shards_after(std::int64_t after) {
  std::vector<MemoryShard> shards;
  io::Statement statement = database_.prepare(
      "SELECT shard, first_row, rows, bytes, image_sha256, text_sha256 FROM shards WHERE shard > ? ORDER BY shard");
  statement.bind(1, after);
  while (statement.step()) {
    shards.push_back({.number = statement.integer(0),
                      .first_row = statement.integer(1),
                      .rows = statement.integer(2),
                      .bytes = statement.integer(3),
                      .sha256 = {statement.text(4), statement.text(5)}});
  }
  return shards;
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
  MemoryLists lists{state(), shards_after(last_shard), {}};
  MemoryState reached = known;
  for (const MemoryShard& shard : lists.shards) {
    constexpr std::int64_t most = std::int64_t{1} << 40;
    const bool fits = shard.number >= 0 && shard.first_row == reached.rows && shard.rows >= 1 && shard.rows < most &&
                      shard.bytes >= 1 && reached.rows < most;
    check(fits, tag, "'", name, "' is damaged: table shards, shard ", shard.number);
    reached.add(shard);
  }
  const bool whole = reached.rows == lists.state.rows && reached.shards == lists.state.shards &&
                     reached.shards_digest == lists.state.shards_digest;
  check(whole, tag, "'", name, "' is damaged: table shards does not fit its checksum");
  if (known.removed == lists.state.removed && known.removed_digest == lists.state.removed_digest) return lists;
  lists.removed = removed_rows();
  MemoryState removed;
  for (const std::int64_t row : lists.removed) removed.remove(row);
  const bool same = removed.removed == lists.state.removed && removed.removed_digest == lists.state.removed_digest;
  const bool inside = lists.removed.empty() || (lists.removed.front() >= 0 && lists.removed.back() < reached.rows);
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

MemoryText MemoryDatabase::text(std::int64_t row) {
  io::Statement& statement = cached("SELECT key, caption, metadata, hash FROM rows WHERE row = ?");
  MemoryText text;
  std::int64_t hash = 0;
  const bool found = statement.bind(1, row).step();
  if (found) {
    text = {statement.text(0), statement.text(1), statement.text(2)};
    hash = statement.integer(3);
  }
  statement.reset();
  check(found && hash == row_hash(row, text), "memory.read", "'", database_.path().string(), "' is damaged: row ", row,
        found ? " does not fit its checksum" : " is missing");
  return text;
}

void MemoryDatabase::insert_row(std::int64_t row, const MemoryText& text) {
  io::Statement& statement = cached("INSERT INTO rows (row, key, caption, metadata, hash) VALUES (?, ?, ?, ?, ?)");
  statement.bind(1, row).bind(2, text.key).bind(3, text.caption).bind(4, text.metadata);
  statement.bind(5, row_hash(row, text)).run();
}

void MemoryDatabase::insert_shard(const MemoryShard& shard) {
  io::Statement& statement =
      cached("INSERT INTO shards (shard, first_row, rows, bytes, image_sha256, text_sha256) VALUES (?, ?, ?, ?, ?, ?)");
  statement.bind(1, shard.number).bind(2, shard.first_row).bind(3, shard.rows).bind(4, shard.bytes);
  statement.bind(5, shard.sha256[0]).bind(6, shard.sha256[1]).run();
}

void MemoryDatabase::remove_row(std::int64_t row) {
  cached("UPDATE rows SET live = NULL WHERE row = ?").bind(1, row).run();
}

void MemoryDatabase::write_state(const MemoryState& state) { put_state(database_, state); }

void MemoryDatabase::verify(MemoryFaults& faults) {
  const std::string name = database_.path().string();
  io::Statement pages = database_.prepare("PRAGMA integrity_check");
  while (pages.step()) {
    if (pages.text(0) != "ok") faults.add("'", name, "': ", pages.text(0));
  }
  const std::int64_t rows = lists({}, -1).state.rows;
  std::int64_t expected = 0;
  io::Statement statement = database_.prepare("SELECT row, key, caption, metadata, hash, live FROM rows ORDER BY row");
  for (; statement.step(); ++expected) {
    const std::int64_t row = statement.integer(0);
    if (row != expected) faults.add("'", name, "': expected row ", expected, ", found ", row);
    expected = row;
    const MemoryText text{statement.text(1), statement.text(2), statement.text(3)};
    const bool intact = row_hash(row, text) == statement.integer(4) && (statement.null(5) || statement.integer(5) == 1);
    if (!intact) faults.add("'", name, "': row ", row, " does not fit its checksum");
  }
  if (expected != rows) faults.add("'", name, "': expected ", rows, " rows, found ", expected);
}

}  // namespace reco
