// SPDX-License-Identifier: Apache-2.0
// Reading a memory beside one who changes it, in this process and in others.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "io/sqlite.h"
#include "reco/memory.h"
#include "support.h"

namespace fs = std::filesystem;
using reco::Matrix;
using reco::Memory;
using reco::Modality;

namespace {

constexpr std::int64_t kDim = 8;

Matrix random_rows(std::int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  return Matrix::NullaryExpr(n, kDim, [&] { return normal(generator); });
}

std::vector<std::string> key_list(std::int64_t first, std::int64_t count) {
  std::vector<std::string> keys;
  for (std::int64_t i = first; i < first + count; ++i) keys.push_back("key " + std::to_string(i));
  return keys;
}

void add_rows(Memory& memory, std::int64_t first, std::int64_t count) {
  const Matrix rows = random_rows(count, static_cast<unsigned>(first));
  memory.add(rows, -rows, {.keys = key_list(first, count), .captions = {}, .metadata = {}});
}

/// What threads that read report; the first few are enough.
class Complaints {
 public:
  void add(const std::string& text) {
    const std::lock_guard lock(mutex_);
    if (lines_.size() < 5) lines_.push_back(text);
  }
  std::vector<std::string> lines() {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

/// Runs each of the readers again and again on a thread of its own until `change` has returned; what they throw is a
/// complaint.
std::vector<std::string> read_beside(const std::vector<std::function<void(Complaints&)>>& readers,
                                     const std::function<void()>& change) {
  std::atomic<bool> done{false};
  std::atomic<std::size_t> running{0};
  Complaints complaints;
  std::vector<std::thread> threads;
  for (const auto& reader : readers) {
    threads.emplace_back([&] {
      ++running;
      do {
        try {
          reader(complaints);
        } catch (const std::exception& error) {
          complaints.add(error.what());
        }
      } while (!done && complaints.lines().empty());
    });
  }
  while (running < readers.size()) std::this_thread::yield();
  change();
  done = true;
  for (auto& thread : threads) thread.join();
  return complaints.lines();
}

}  // namespace

TEST(MemoryReader, GivesNoWordsOfRowsThatWereCompactedAwaySince) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 20);
  const Memory reader = Memory::open(folder / "m", true);
  const auto rows = reader.rows();
  const auto found = reader.search(random_rows(1, 5), {.k = 20});
  memory.remove(key_list(3, 5));
  memory.compact();
  const auto keys = reader.keys(rows);
  for (std::int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(keys[static_cast<std::size_t>(i)], i >= 3 && i < 8 ? "" : "key " + std::to_string(i));
  }
  const auto words = reader.keys({found.rows.data(), 20});
  EXPECT_EQ(std::count(words.begin(), words.end(), ""), 5);
  EXPECT_EQ(reader.captions(rows).size(), 20);
  EXPECT_EQ(reader.metadata(rows)[3], "");
  EXPECT_TRUE(has(error_of([&] { reader.get("key 3"); }), "'key 3' is not in"));
  EXPECT_TRUE(has(error_of([&] { reader.keys(std::array<std::int64_t, 1>{20}); }), "rows must be from -1 to 19"));
}

TEST(MemoryReader, AMissingRowIsStillDamage) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 5);
  const Memory reader = Memory::open(folder / "m", true);
  const auto rows = reader.rows();
  reco::io::Database(folder / "m/memory.sqlite", reco::io::DatabaseMode::read_write)
      .execute("DELETE FROM rows WHERE row = 2");
  EXPECT_TRUE(has(error_of([&] { reader.keys(rows); }), "row 2 is missing"));
}

TEST(MemoryReader, AnotherProcessReadsBesideCompactions) {
  const Folder folder;
  Memory::create(folder / "m", kDim).close();
  std::array<int, 2> ready{}, go{}, answer{};
  for (auto* ends : {&ready, &go, &answer}) ASSERT_EQ(::pipe(ends->data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    // Reads what was there, lets the other remove and compact, and asks for the words of what it has found.
    std::string text;
    char byte = 0;
    try {
      [[maybe_unused]] auto count = ::read(go[0], &byte, 1);
      const Memory reader = Memory::open(folder / "m", true);
      const auto rows = reader.rows();
      count = ::write(ready[1], "r", 1);
      count = ::read(go[0], &byte, 1);
      for (const std::string& key : reader.keys(rows)) text += (key.empty() ? "-" : key) + ';';
    } catch (const std::exception& error) {
      text = error.what();
    }
    [[maybe_unused]] const auto count = ::write(answer[1], text.data(), text.size());
    ::_exit(0);
  }
  ::close(answer[1]);
  Memory memory = Memory::open(folder / "m");
  add_rows(memory, 0, 4);
  char byte = 0;
  ASSERT_EQ(::write(go[1], "g", 1), 1);
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  memory.remove(key_list(1, 2));
  memory.compact();
  ASSERT_EQ(::write(go[1], "g", 1), 1);
  std::string text;
  std::array<char, 256> part;
  for (auto count = ::read(answer[0], part.data(), part.size()); count > 0;
       count = ::read(answer[0], part.data(), part.size())) {
    text.append(part.data(), static_cast<std::size_t>(count));
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(text, "key 0;-;-;key 3;");
  for (const auto* ends : {&ready, &go}) ::close((*ends)[0]), ::close((*ends)[1]);
  ::close(answer[0]);
}

TEST(MemoryReader, SeesAPairThatIsReplacedAgainAndAgain) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 50);
  const Matrix axis = Matrix::Identity(1, kDim);
  const reco::RowInfo steady{.keys = {"steady"}, .captions = {"always"}, .metadata = {R"({"n": 1})"}};
  memory.add(axis, axis, steady);
  const Memory reader = Memory::open(folder / "m", true);
  const auto check = [&](const Memory& m) {
    return [&](Complaints& complaints) {
      const auto one = m.search(axis, {.k = 1, .where = "caption = 'always'"});
      if (one.rows(0, 0) < 0 || one.scores(0, 0) < 0.999F) complaints.add("a condition hides the pair");
      const auto only =
          m.search(axis, {.k = 1, .only_keys = {{"steady"}}, .where = "json_extract(metadata, '$.n') = 1"});
      if (only.rows(0, 0) < 0 || only.scores(0, 0) < 0.999F) complaints.add("only_keys hides the pair");
      const auto others = m.search(axis, {.k = 1, .exclude_keys = {{"steady"}}});
      if (others.scores(0, 0) > 0.999F) complaints.add("exclude_keys lets the pair through");
      if (!m.contains("steady")) complaints.add("the key is not there");
      if (m.get("steady").key != "steady") complaints.add("the pair has another key");
    };
  };
  const auto lines = read_beside({check(memory), check(reader), check(reader)}, [&] {
    for (int i = 0; i < 30; ++i) {
      memory.upsert(axis, axis, steady);
      memory.compact();
    }
  });
  EXPECT_EQ(lines, std::vector<std::string>{});
}

TEST(MemoryReader, ReadsAndVerifiesBesideEveryChange) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 200);
  const Memory reader = Memory::open(folder / "m", true);
  const auto words = [&](const Memory& m) {
    return [&](Complaints& complaints) {
      const auto rows = m.rows();
      const auto keys = m.keys(rows);
      const std::set<std::string> different(keys.begin(), keys.end());
      if (rows.size() < 150 || !different.contains("key 0")) complaints.add("pairs are gone");
      const auto found = m.search(random_rows(2, 7), {.k = 10});
      if ((found.rows.array() < 0).any()) complaints.add("too few are found");
      m.captions({found.rows.data(), 20});
    };
  };
  const auto verify = [&](const Memory& m) {
    return [&](Complaints& complaints) {
      for (const std::string& fault : m.verify()) complaints.add(fault);
    };
  };
  const auto lines = read_beside({words(memory), words(reader), verify(memory), verify(reader)}, [&] {
    for (std::int64_t i = 0; i < 12; ++i) {
      add_rows(memory, 1'000 + 5 * i, 5);
      memory.remove(key_list(1'000 + 5 * i, 4));
      memory.compact();
      memory.optimize({.index = i % 2 == 0 ? "HNSW4" : "IVF2"});
    }
  });
  EXPECT_EQ(lines, std::vector<std::string>{});
}
