// SPDX-License-Identifier: Apache-2.0
// A thin wrapper of SQLite: every failure is an Error that names the database's file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

struct sqlite3;
struct sqlite3_stmt;

namespace reco::io {

/// How to open a database. `immutable` reads without locks and without files beside it, for folders that cannot be
/// written; nobody may write to the database meanwhile.
enum class DatabaseMode { create, read_write, read_only, immutable };

/// One row-by-row command. Not thread safe; must not outlive its database.
class Statement {
 public:
  Statement& bind(int index, std::int64_t value);  ///< parameters count from 1
  Statement& bind(int index, std::string_view value);
  bool step();                             ///< true while there is a row to read
  void run();                              ///< steps to the end and makes the statement ready for the next values
  void reset();                            ///< ready for the next values
  std::int64_t integer(int column) const;  ///< columns count from 0
  std::string text(int column) const;
  bool null(int column) const;

 private:
  friend class Database;
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const;
  };
  Statement(sqlite3* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
  void expect(int code) const;
  sqlite3* database_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

/// One connection. Not thread safe; other connections' writes are waited for up to ten seconds.
class Database {
 public:
  Database(const std::filesystem::path& path, DatabaseMode mode);
  const std::filesystem::path& path() const { return path_; }
  Statement prepare(const char* sql);
  /// For SQL that holds what a caller wrote: one SELECT that reads columns of that table and calls functions.
  Statement prepare_restricted(const std::string& sql, const std::string& table);
  void execute(const char* sql);
  /// The first column of the first row; Error if there is none.
  std::int64_t integer(const char* sql);
  std::string text(const char* sql);

 private:
  struct Close {
    void operator()(sqlite3* database) const;
  };
  std::filesystem::path path_;
  std::unique_ptr<sqlite3, Close> database_;
};

/// Rolls back unless committed.
class Transaction {
 public:
  enum class Kind { read, write };
  Transaction(Database& database, Kind kind);
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  ~Transaction();
  void commit();

 private:
  Database& database_;
  bool open_ = true;
};

}  // namespace reco::io
