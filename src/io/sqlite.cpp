// SPDX-License-Identifier: Apache-2.0
#include "io/sqlite.h"

#include <sqlite3.h>

#include <cctype>

#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco::io {

namespace {

namespace fs = std::filesystem;
constexpr const char* kTag = "memory.sqlite";

/// `file:` URI of a path: everything that could mean something in one is escaped.
std::string uri(const fs::path& path, const char* query) {
  constexpr const char* digits = "0123456789ABCDEF";
  std::string text = "file:";
  for (const char c : fs::absolute(path).string()) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || c == '/' || c == '.' || c == '-' || c == '_') {
      text += c;
    } else {
      text += {'%', digits[byte >> 4], digits[byte & 15]};
    }
  }
  return text + query;
}

int flags(DatabaseMode mode) {
  constexpr int common = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_URI;
  switch (mode) {
    case DatabaseMode::create:
      return common | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
    case DatabaseMode::read_write:
      return common | SQLITE_OPEN_READWRITE;
    default:
      return common | SQLITE_OPEN_READONLY;
  }
}

const char* file_of(sqlite3* database) {
  const char* name = sqlite3_db_filename(database, "main");
  return name != nullptr ? name : "";
}

void expect_ok(sqlite3* database, int code) {
  if (code == SQLITE_OK) return;
  if (code == SQLITE_INTERRUPT) check_interrupt();
  fail(kTag, "'", file_of(database), "': ", sqlite3_errmsg(database), " (SQLite code ",
       sqlite3_extended_errcode(database), ")");
}

}  // namespace

void Statement::Finalize::operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }

void Database::Close::operator()(sqlite3* database) const { sqlite3_close_v2(database); }

Database::Database(const fs::path& path, DatabaseMode mode) : path_(path) {
  sqlite3* database = nullptr;
  const std::string name = uri(path, mode == DatabaseMode::immutable ? "?immutable=1" : "");
  const int code = sqlite3_open_v2(name.c_str(), &database, flags(mode), nullptr);
  database_.reset(database);
  if (code != SQLITE_OK) fail(kTag, "cannot open '", path.string(), "': ", sqlite3_errstr(code));
  sqlite3_busy_timeout(database, 10'000);
  // A hostile schema must not run functions, and damaged pages are to be noticed early.
  sqlite3_db_config(database, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(database, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  execute("PRAGMA cell_size_check = ON");
  constexpr int steps = 100'000;  // of SQLite's virtual machine, some milliseconds
  sqlite3_progress_handler(
      database, steps, [](void*) { return interrupted() ? 1 : 0; }, nullptr);
}

Statement Database::prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  expect_ok(database_.get(),
            sqlite3_prepare_v3(database_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr));
  return {database_.get(), statement};
}

void Database::execute(const char* sql) {
  expect_ok(database_.get(), sqlite3_exec(database_.get(), sql, nullptr, nullptr, nullptr));
}

std::int64_t Database::integer(const char* sql) {
  Statement statement = prepare(sql);
  check(statement.step(), kTag, "'", path_.string(), "': no answer to ", sql);
  return statement.integer(0);
}

namespace {

int authorize(void* table, int action, const char* what, const char* function, const char*, const char*) {
  if (action == SQLITE_SELECT) return SQLITE_OK;
  if (action == SQLITE_READ)
    return what != nullptr && *static_cast<const std::string*>(table) == what ? SQLITE_OK : SQLITE_DENY;
  const bool harmless =
      action == SQLITE_FUNCTION && function != nullptr && std::string_view(function) != "load_extension";
  return harmless ? SQLITE_OK : SQLITE_DENY;
}

}  // namespace

Statement Database::prepare_restricted(const std::string& sql, const std::string& table) {
  check(sql.find('\0') == std::string::npos, kTag, "SQL must not hold a zero byte");
  sqlite3_set_authorizer(database_.get(), authorize, const_cast<std::string*>(&table));
  sqlite3_stmt* statement = nullptr;
  const char* rest = nullptr;
  const int code = sqlite3_prepare_v2(database_.get(), sql.c_str(), -1, &statement, &rest);
  sqlite3_set_authorizer(database_.get(), nullptr, nullptr);
  Statement prepared(database_.get(), statement);
  expect_ok(database_.get(), code);
  check(*rest == '\0', kTag, "more than one SQL statement");
  return prepared;
}

std::string Database::text(const char* sql) {
  Statement statement = prepare(sql);
  check(statement.step(), kTag, "'", path_.string(), "': no answer to ", sql);
  return statement.text(0);
}

void Statement::expect(int code) const { expect_ok(database_, code); }

Statement& Statement::bind(int index, std::int64_t value) {
  expect(sqlite3_bind_int64(statement_.get(), index, value));
  return *this;
}

Statement& Statement::bind(int index, std::string_view value) {
  // A null pointer would bind NULL.
  const char* data = value.empty() ? "" : value.data();
  expect(sqlite3_bind_text64(statement_.get(), index, data, value.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
  return *this;
}

bool Statement::step() {
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) {
    const std::string message = sqlite3_errmsg(database_);
    sqlite3_reset(statement_.get());
    if (code == SQLITE_INTERRUPT) check_interrupt();
    fail(kTag, "'", file_of(database_), "': ", message, " (SQLite code ", code, ")");
  }
  return false;
}

void Statement::run() {
  while (step()) {
  }
  reset();
}

void Statement::reset() { sqlite3_reset(statement_.get()); }

std::int64_t Statement::integer(int column) const { return sqlite3_column_int64(statement_.get(), column); }

std::string Statement::text(int column) const {
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(statement_.get(), column))};
}

bool Statement::null(int column) const { return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL; }

Transaction::Transaction(Database& database, Kind kind) : database_(database) {
  database_.execute(kind == Kind::write ? "BEGIN IMMEDIATE" : "BEGIN");
}

Transaction::~Transaction() {
  if (!open_) return;
  const InterruptScope to_the_end({});
  try {
    database_.execute("ROLLBACK");
  } catch (const Error&) {  // SQLite has rolled back already, after a full disk for example
  }
}

void Transaction::commit() {
  const InterruptScope to_the_end({});
  database_.execute("COMMIT");
  open_ = false;
}

}  // namespace reco::io
