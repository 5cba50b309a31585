// SPDX-License-Identifier: Apache-2.0
#include "io/sqlite.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "reco/error.h"

namespace fs = std::filesystem;

namespace {

/// A folder that goes when the test ends.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("reco-memory-" + std::to_string(::getpid()) + "-" + counter())) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  static std::string counter() {
    static int count = 0;
    return std::to_string(count++);
  }
  fs::path path_;
};

/// What an Error says; empty when nothing is thrown.
template <typename Work>
std::string error_of(const Work& work) {
  try {
    work();
  } catch (const reco::Error& error) {
    return error.what();
  }
  return {};
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(Sqlite, ErrorsNameTheFile) {
  const Folder folder;
  const fs::path path = folder / "a %41?b#.db";
  reco::io::Database database(path, reco::io::DatabaseMode::create);
  EXPECT_TRUE(fs::exists(path));
  EXPECT_TRUE(has(error_of([&] { database.execute("SELECT nothing"); }), path.string()));
  EXPECT_TRUE(has(error_of([&] { database.integer("SELECT 1 WHERE 0"); }), path.string()));
  const fs::path missing = folder / "missing.db";
  EXPECT_TRUE(has(error_of([&] { reco::io::Database(missing, reco::io::DatabaseMode::read_only); }), missing.string()));
}

TEST(Sqlite, TransactionsRollBack) {
  const Folder folder;
  reco::io::Database database(folder / "test.db", reco::io::DatabaseMode::create);
  database.execute("CREATE TABLE words (word TEXT UNIQUE)");
  reco::io::Statement insert = database.prepare("INSERT INTO words VALUES (?)");
  const std::string zero("a\0b", 3);
  {
    reco::io::Transaction transaction(database, reco::io::Transaction::Kind::write);
    insert.bind(1, zero).run();
  }
  EXPECT_EQ(database.integer("SELECT count(*) FROM words"), 0);
  insert.bind(1, zero).run();
  EXPECT_EQ(database.text("SELECT word FROM words"), zero);
  EXPECT_TRUE(has(error_of([&] { insert.bind(1, zero).run(); }), "UNIQUE"));
  insert.bind(1, "other").run();
  EXPECT_EQ(database.integer("SELECT count(*) FROM words"), 2);
}
