// SPDX-License-Identifier: Apache-2.0
#include "io/sqlite.h"

#include <gtest/gtest.h>

#include "support.h"

namespace fs = std::filesystem;

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
