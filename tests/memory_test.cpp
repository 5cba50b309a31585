// SPDX-License-Identifier: Apache-2.0
#include "reco/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "io/file.h"
#include "io/npy.h"
#include "io/sqlite.h"
#include "memory_rows.h"
#include "reco/error.h"
#include "reco/threads.h"
#include "support.h"

namespace fs = std::filesystem;
using reco::Matrix;
using reco::Memory;
using reco::Modality;

namespace {

Matrix random_rows(std::int64_t n, std::int64_t dim, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  return Matrix::NullaryExpr(n, dim, [&] { return normal(generator); });
}

std::vector<std::string> key_list(std::int64_t first, std::int64_t count) {
  std::vector<std::string> keys;
  for (std::int64_t i = first; i < first + count; ++i) keys.push_back("key " + std::to_string(i));
  return keys;
}

void add_rows(Memory& memory, std::int64_t first, std::int64_t count) {
  const auto seed = static_cast<unsigned>(first);
  memory.add(random_rows(count, memory.dim(), 2 * seed), random_rows(count, memory.dim(), 2 * seed + 1),
             {.keys = key_list(first, count), .captions = {}, .metadata = {}});
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

void put_byte(const fs::path& file, std::size_t place, char byte) {
  std::fstream(file, std::ios::binary | std::ios::in | std::ios::out)
      .seekp(static_cast<std::streamoff>(place))
      .put(byte);
}

std::string content(const reco::MemoryRow& row) {
  std::ostringstream out;
  out << row.key << row.caption << row.metadata << row.image_embedding.transpose() << row.text_embedding.transpose();
  return out.str();
}

/// What a memory answers to everything a caller can ask.
std::string everything(const Memory& memory) {
  std::ostringstream out;
  const auto rows = memory.rows();
  const auto keys = memory.keys(rows), captions = memory.captions(rows), metadata = memory.metadata(rows);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out << rows[i] << keys[i] << captions[i] << metadata[i] << memory.contains(keys[i]) << '\n';
  }
  const auto found = memory.search(random_rows(3, memory.dim(), 99), {.k = 4});
  out << found.rows << found.scores << found.partners << memory.embeddings(rows, Modality::image);
  out << memory.embeddings(rows, Modality::text) << memory.encoder() << memory.dim();
  return out.str();
}

}  // namespace

TEST(Memory, KeepsWhatItIsGiven) {
  const Folder folder;
  {
    Memory memory = Memory::create(folder / "m.reco", 8, "abc");
    memory.add(Matrix::Identity(2, 8) * 3, Matrix::Identity(2, 8) * 1e-30F,
               {.keys = {"a", "b"}, .captions = {"first", ""}, .metadata = {R"({"x": [1, "ü"]})", " {}"}});
    EXPECT_EQ(memory.size(), 2);
  }
  const Memory memory = Memory::open(folder / "m.reco");
  const auto row = memory.get("a");
  EXPECT_EQ(row.caption, "first");
  EXPECT_EQ(row.metadata, R"({"x": [1, "ü"]})");
  EXPECT_EQ(row.image_embedding, Eigen::VectorXf::Unit(8, 0));
  EXPECT_EQ(row.text_embedding, Eigen::VectorXf::Unit(8, 0));
  EXPECT_TRUE(memory.contains("b"));
  EXPECT_FALSE(memory.contains("c"));
  EXPECT_EQ(memory.encoder(), "abc");
  EXPECT_TRUE(has(error_of([&] { memory.get("c"); }), "'c'"));
  const auto info = memory.info();
  EXPECT_EQ(info.rows, 2);
  EXPECT_EQ(info.shards, 1);
  EXPECT_EQ(info.format, 2);
  EXPECT_GT(info.bytes, 0);
  EXPECT_TRUE(memory.verify().empty());
}

TEST(Memory, FindsInEitherSideWithPartners) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m.reco", 20);
  add_rows(memory, 0, 300);
  add_rows(memory, 300, 1);
  const auto rows = memory.rows();
  const Matrix images = memory.embeddings(rows, Modality::image), texts = memory.embeddings(rows, Modality::text);
  const Matrix queries = random_rows(7, 20, 5).rowwise().normalized();
  for (const auto side : {Modality::image, Modality::text}) {
    const Matrix& searched = side == Modality::image ? images : texts;
    const Matrix& partners = side == Modality::image ? texts : images;
    const auto found = memory.search(queries, {.k = 5, .modality = side});
    for (Eigen::Index i = 0; i < 7; ++i) {
      Eigen::VectorXf scores = searched * queries.row(i).transpose();
      for (Eigen::Index j = 0; j < 5; ++j) {
        Eigen::Index best;
        const float score = scores.maxCoeff(&best);
        EXPECT_EQ(found.rows(i, j), best);
        EXPECT_NEAR(found.scores(i, j), score, 1e-6);
        EXPECT_EQ(found.partners.row(i * 5 + j), partners.row(best));
        scores[best] = -2;
      }
    }
  }
}

TEST(Memory, EqualScoresComeInTheOrderOfAddingWhateverTheThreads) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m.reco", 33);
  const Matrix one = random_rows(1, 33, 1), other = random_rows(1, 33, 2);
  Matrix rows(1000, 33);
  for (Eigen::Index i = 0; i < 1000; ++i) rows.row(i) = i % 3 == 0 ? one : other;
  memory.add(rows, rows, {.keys = key_list(0, 1000), .captions = {}, .metadata = {}});
  const int before = reco::threads();
  for (const int threads : {1, 2, 5}) {
    reco::set_threads(threads);
    for (const Eigen::Index n : {1, 2, 9}) {
      const auto found = memory.search(one.replicate(n, 1), {.k = 400});
      for (Eigen::Index j = 0; j < 334; ++j) ASSERT_EQ(found.rows(n - 1, j), 3 * j);
      for (Eigen::Index j = 334; j < 400; ++j) ASSERT_EQ(found.rows(n - 1, j), (j - 334) / 2 * 3 + 1 + (j - 334) % 2);
    }
  }
  reco::set_threads(before);
}

TEST(Memory, LeavesOutWhatIsExcluded) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m.reco", 16);
  add_rows(memory, 0, 50);
  const Matrix images = memory.embeddings(memory.rows(), Modality::image);
  const auto first = [&](const reco::SearchOptions& options) { return memory.search(images, options).rows; };
  EXPECT_EQ(first({.k = 1})(7, 0), 7);
  std::vector<std::vector<std::string>> own;
  for (const auto& key : key_list(0, 50)) own.push_back({"unknown", key});
  const auto others = first({.k = 50, .exclude_keys = own});
  for (Eigen::Index i = 0; i < 50; ++i) {
    EXPECT_FALSE((others.row(i).array() == i).any());
    EXPECT_EQ(others(i, 49), -1);
  }
  const auto none = memory.search(images, {.k = 2, .exclude_keys = {key_list(0, 50)}});
  EXPECT_TRUE((none.rows.array() == -1).all());
  EXPECT_TRUE(none.scores.isZero(0) && none.partners.isZero(0));
  EXPECT_EQ(first({.k = 50, .max_similarity = 0.99F}), others);
}

TEST(Memory, RemovedRowsStayAwayAndTheirKeysAreFree) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  {
    Memory memory = Memory::create(path, 12);
    add_rows(memory, 0, 100);
    const auto found = memory.search(random_rows(1, 12, 3), {.k = 1});
    const auto key = memory.keys(std::vector{found.rows(0, 0)});
    memory.remove(key);
    EXPECT_EQ(memory.size(), 99);
    EXPECT_FALSE(memory.contains(key[0]));
    EXPECT_EQ(memory.keys(std::vector{found.rows(0, 0)}), key);  // an earlier result keeps its words
    EXPECT_TRUE(has(error_of([&] { memory.remove(key); }), key[0]));
    EXPECT_TRUE(has(error_of([&] { memory.remove(std::vector<std::string>{"key 50", "nobody"}); }), "nobody"));
    EXPECT_EQ(memory.size(), 99);
    memory.add(Matrix::Ones(1, 12), Matrix::Ones(1, 12), {.keys = key, .captions = {"again"}, .metadata = {}});
    EXPECT_EQ(memory.get(key[0]).caption, "again");
    // Both rows that ever had the key are excluded by it.
    const auto without = memory.search(random_rows(1, 12, 3), {.k = 101, .exclude_keys = {key}});
    EXPECT_EQ((without.rows.array() >= 0).count(), 99);
  }
  const Memory memory = Memory::open(path, true);
  EXPECT_EQ(memory.size(), 100);
  EXPECT_EQ(memory.info().removed, 1);
  EXPECT_EQ(memory.rows().size(), 100U);
  EXPECT_TRUE(memory.verify().empty());
}

TEST(Memory, RefusesBadInputAndWritesNothing) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m.reco", 4);
  add_rows(memory, 0, 3);
  const auto before = files_in(folder / "m.reco");
  const auto add = [&](const Matrix& images, const Matrix& texts, const reco::RowInfo& info) {
    return error_of([&] { memory.add(images, texts, info); });
  };
  const Matrix one = Matrix::Ones(1, 4);
  Matrix bad = one;
  EXPECT_TRUE(has(add(Matrix::Ones(1, 5), one, {{"a"}, {}, {}}), "must have 4 columns, got 5"));
  EXPECT_TRUE(has(add(one, Matrix::Ones(2, 4), {{"a"}, {}, {}}), "pairs"));
  EXPECT_TRUE(has(add(one, one, {{}, {}, {}}), "keys"));
  EXPECT_TRUE(has(add(one, one, {{""}, {}, {}}), "keys"));
  EXPECT_TRUE(has(add(one, one, {{"key 1"}, {}, {}}), "already"));
  EXPECT_TRUE(has(add(Matrix::Ones(2, 4), Matrix::Ones(2, 4), {{"a", "a"}, {}, {}}), "twice"));
  EXPECT_TRUE(has(add(one, one, {{"\xff"}, {}, {}}), "UTF-8"));
  EXPECT_TRUE(has(add(one, one, {{"a"}, {"\xc3"}, {}}), "UTF-8"));
  EXPECT_TRUE(has(add(one, one, {{"a"}, {"b", "c"}, {}}), "captions"));
  for (const char* json : {"", "[]", "{", "{} {}", "null", "{'a': 1}"}) {
    EXPECT_TRUE(has(add(one, one, {{"a"}, {}, {json}}), "JSON")) << json;
  }
  EXPECT_TRUE(has(add(one * 0, one, {{"a"}, {}, {}}), "zero"));
  bad(0, 2) = std::nanf("");
  EXPECT_TRUE(has(add(one, bad, {{"a"}, {}, {}}), "NaN, row 0"));
  bad(0, 2) = INFINITY;
  EXPECT_TRUE(has(add(one, bad, {{"a"}, {}, {}}), "finite, row 0"));
  EXPECT_TRUE(has(error_of([&] { memory.search(Matrix::Ones(1, 3)); }), "must have 4 columns, got 3"));
  EXPECT_TRUE(has(error_of([&] { memory.search(bad); }), "finite"));
  EXPECT_TRUE(has(error_of([&] { memory.search(one, {.k = 0}); }), "k must"));
  EXPECT_TRUE(has(error_of([&] { memory.search(one, {.k = 4097}); }), "k must"));
  EXPECT_TRUE(has(error_of([&] { memory.search(one, {.exclude_keys = {{}, {}}}); }), "exclude_keys"));
  EXPECT_TRUE(has(error_of([&] { memory.keys(std::vector<std::int64_t>{3}); }), "got 3"));
  EXPECT_TRUE(has(error_of([&] { memory.embeddings(std::vector<std::int64_t>{-2}, Modality::text); }), "got -2"));
  EXPECT_EQ(files_in(folder / "m.reco"), before);
  EXPECT_EQ(memory.size(), 3);
  memory.add(Matrix(0, 4), Matrix(0, 4), {});
  EXPECT_EQ(memory.size(), 3);
}

TEST(Memory, CreateNeedsAnEmptyFolder) {
  const Folder folder;
  EXPECT_TRUE(has(error_of([&] { Memory::create(folder / "m", 0); }), "dim"));
  EXPECT_TRUE(has(error_of([&] { Memory::create(folder / "m", 65'537); }), "dim"));
  EXPECT_FALSE(fs::exists(folder / "m"));
  std::ofstream(folder / "file") << "x";
  EXPECT_TRUE(has(error_of([&] { Memory::create(folder / "file", 4); }), "file"));
  EXPECT_TRUE(has(error_of([&] { Memory::create(folder / "", 4); }), "empty"));
  EXPECT_EQ(files_in(folder / "").size(), 1U);
  Memory::create(folder / "m", 4).close();
  EXPECT_TRUE(has(error_of([&] { Memory::create(folder / "m", 4); }), "empty"));
  // What a create() that was killed before its commit may leave.
  fs::create_directories(folder / "killed/img_emb");
  std::ofstream(folder / "killed/memory.lock");
  std::ofstream(folder / "killed/memory.sqlite");
  EXPECT_EQ(Memory::create(folder / "killed", 4).size(), 0);
}

TEST(Memory, OneWriterAtATime) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  Memory memory = Memory::create(path, 4, "one");
  EXPECT_TRUE(has(error_of([&] { Memory::open(path); }), "another writer"));
  Memory reader = Memory::open(path, true, "one");
  EXPECT_EQ(error_of([&] { Memory::open(path, true, "two"); }).find("[memory.open]"), 0U);
  EXPECT_TRUE(has(error_of([&] { Memory::open(path, true, "two"); }), "'two', it is of 'one'"));
  add_rows(memory, 0, 2);
  EXPECT_EQ(reader.size(), 2);
  memory.remove(key_list(0, 1));
  EXPECT_EQ(reader.search(Matrix::Ones(1, 4), {.k = 2}).rows(0, 1), -1);
  EXPECT_TRUE(has(error_of([&] { add_rows(reader, 5, 1); }), "reading only"));
  EXPECT_TRUE(has(error_of([&] { reader.remove(key_list(1, 1)); }), "reading only"));
  Memory copy = memory;
  memory.close();
  EXPECT_TRUE(copy.closed());
  EXPECT_TRUE(has(error_of([&] { copy.size(); }), "closed"));
  EXPECT_TRUE(has(error_of([&] { add_rows(copy, 5, 1); }), "closed"));
  EXPECT_TRUE(has(error_of([&] { copy.search(Matrix::Ones(1, 4)); }), "closed"));
  EXPECT_TRUE(has(error_of([&] { copy.verify(); }), "closed"));
  EXPECT_TRUE(has(error_of([&] { copy.info(); }), "closed"));
  EXPECT_EQ(Memory::open(path).size(), 1);
  EXPECT_TRUE(has(error_of([&] { Memory::open(folder / "nothing"); }), "no memory"));
}

TEST(Memory, ManySmallShardsAndLargeOnesTogether) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  {
    Memory memory = Memory::create(path, 64);
    for (std::int64_t i = 0; i < 120; ++i) add_rows(memory, i, 1);
    add_rows(memory, 120, 5000);  // mapped
    for (std::int64_t i = 5120; i < 5160; ++i) add_rows(memory, i, 1);
    memory.remove(std::vector<std::string>{"key 3", "key 5000", "key 5130"});
  }
  const Memory memory = Memory::open(path);
  EXPECT_EQ(memory.info().shards, 161);
  EXPECT_EQ(memory.size(), 5157);
  for (const std::int64_t row : {0, 119, 120, 5119, 5159}) {
    const auto found =
        memory.search(memory.embeddings(std::vector{row}, Modality::text), {.k = 1, .modality = Modality::text});
    EXPECT_EQ(found.rows(0, 0), row);
  }
  EXPECT_TRUE(memory.verify().empty());
}

TEST(Memory, AWriterSweepsWhatAKilledOneLeft) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  {
    Memory memory = Memory::create(path, 4);
    add_rows(memory, 0, 2);
  }
  const auto before = files_in(path);
  for (const char* name : {"img_emb/img_emb_00001.npy", "text_emb/text_emb_00001.npy.tmp-1-2"}) {
    std::ofstream(path / name) << "half";
  }
  std::ofstream(path / "img_emb/notes.txt") << "mine";
  EXPECT_TRUE(Memory::open(path, true).verify().empty());
  Memory memory = Memory::open(path);
  add_rows(memory, 2, 2);
  EXPECT_TRUE(memory.verify().empty());
  memory.close();
  EXPECT_EQ(files_in(path).size(), before.size() + 3);
  EXPECT_TRUE(fs::exists(path / "img_emb/notes.txt"));
  EXPECT_FALSE(fs::exists(path / "text_emb/text_emb_00001.npy.tmp-1-2"));
}

TEST(Memory, AnyFlippedByteIsNoticedOrHarmless) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  std::string expected;
  {
    Memory memory = Memory::create(path, 3, "encoder");
    memory.add(random_rows(3, 3, 1), random_rows(3, 3, 2),
               {.keys = {"a", "b", "c"}, .captions = {"x", "y", "z"}, .metadata = {R"({"n":1})", "{}", "{}"}});
    memory.add(random_rows(1, 3, 3), random_rows(1, 3, 4), {.keys = {"d"}, .captions = {}, .metadata = {}});
    memory.remove(std::vector<std::string>{"b"});
    memory.compact();
    memory.optimize({.index = "IVF1,Flat"});
    memory.remove(std::vector<std::string>{"c"});
    expected = everything(memory);
  }
  std::int64_t open_errors = 0, faults = 0, unchanged = 0;
  for (const auto& file : files_in(path)) {
    const std::string intact = reco::io::read_file(file);
    const bool some = file.extension() == ".sqlite" && std::getenv("RECO_EVERY_BYTE") == nullptr;
    const std::size_t step = some ? 11 : 1;
    for (std::size_t i = 0; i < intact.size(); i += step) {
      put_byte(file, i, static_cast<char>(intact[i] ^ (1 << (i % 8))));
      try {
        const Memory memory = Memory::open(path, true);
        if (!memory.verify().empty()) {
          ++faults;
          error_of([&] { everything(memory); });
        } else {
          ASSERT_EQ(everything(memory), expected) << file << ' ' << i;
          ++unchanged;
        }
      } catch (const reco::Error&) {
        ++open_errors;
      }
      put_byte(file, i, intact[i]);
      for (const char* beside : {"memory.sqlite-wal", "memory.sqlite-shm"}) fs::remove(path / beside);
    }
  }
  EXPECT_GT(open_errors, 0);
  EXPECT_GT(faults, 0);
  EXPECT_GT(unchanged, 0);  // unused parts of pages
  std::cout << open_errors << " errors, " << faults << " faults, " << unchanged << " unchanged\n";
  EXPECT_EQ(everything(Memory::open(path, true)), expected);
}

TEST(Memory, RepairKeepsEveryIntactRow) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  std::map<std::string, std::string> expected;
  {
    Memory memory = Memory::create(path, 3, "encoder");
    add_rows(memory, 0, 4);
    memory.remove(std::vector<std::string>{"key 1"});
    memory.compact();
    add_rows(memory, 10, 2);
    memory.remove(std::vector<std::string>{"key 10"});
    memory.optimize({.index = "IVF1"});
    for (const std::string& key : memory.keys(memory.rows())) expected[key] = content(memory.get(key));
  }
  ASSERT_EQ(expected.size(), 4);
  EXPECT_TRUE(Memory::repair(path).empty());
  const fs::path copy = folder / "copy";
  std::int64_t refused = 0, lost_rows = 0;
  for (const auto& file : files_in(path)) {
    const std::string intact = reco::io::read_file(file);
    const std::size_t step = file.extension() == ".sqlite" ? 307 : file.extension() == ".npy" ? 1 : 31;
    for (std::size_t i = 0; i < intact.size(); i += i < 128 ? std::max<std::size_t>(16, step) : step) {
      fs::remove_all(copy);
      fs::copy(path, copy, fs::copy_options::recursive);
      put_byte(copy / fs::relative(file, path), i, static_cast<char>(intact[i] ^ (1 << (i % 8))));
      std::vector<std::string> lost;
      try {
        lost = Memory::repair(copy);
      } catch (const reco::Error&) {
        ASSERT_EQ(file.extension(), ".sqlite");
        ++refused;
        continue;
      }
      const Memory memory = Memory::open(copy);
      ASSERT_TRUE(memory.verify().empty()) << file << ' ' << i << memory.verify()[0];
      const auto keys = memory.keys(memory.rows());
      for (const std::string& key : keys) ASSERT_EQ(content(memory.get(key)), expected.at(key)) << file << ' ' << i;
      if (file.extension() == ".sqlite") continue;
      ASSERT_GE(keys.size(), 3) << file << ' ' << i;  // a byte is of one row at most
      ASSERT_EQ(lost.empty(), keys.size() == 4 && memory.info().indexes.size() == 2) << file << ' ' << i;
      lost_rows += 4 - static_cast<std::int64_t>(keys.size());
    }
  }
  EXPECT_EQ(lost_rows, 4 * 2 * 3 * 2);  // every byte of every row, both sides
  std::cout << refused << " databases refused\n";
  fs::remove(path / "img_emb" / fs::directory_iterator(path / "img_emb")->path().filename());
  EXPECT_FALSE(Memory::repair(path).empty());
  EXPECT_TRUE(Memory::open(path).verify().empty());
  const Memory held = Memory::open(path);
  EXPECT_TRUE(has(error_of([&] { Memory::repair(path); }), "has the memory open"));
  EXPECT_TRUE(has(error_of([&] { Memory::repair(folder / "nothing"); }), "is no memory"));
}

TEST(Memory, TruncatedAndMissingFilesAreNamed) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  {
    Memory memory = Memory::create(path, 3);
    add_rows(memory, 0, 5);
  }
  for (const auto& file : files_in(path)) {
    if (file.filename() == "memory.lock") continue;
    const std::string intact = reco::io::read_file(file);
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, intact.size() / 2, intact.size() - 1}) {
      std::ofstream(file, std::ios::binary) << intact.substr(0, size);
      // SQLite reads a last page that is cut short as if zeros followed: no harm where they did.
      const bool harmless = file.extension() == ".sqlite" && size == intact.size() - 1;
      const std::string error = error_of([&] { Memory::open(path, true); });
      EXPECT_TRUE(has(error, file.string()) || (harmless && error.empty())) << file << ' ' << size << error;
    }
    fs::remove(file);
    EXPECT_FALSE(error_of([&] { Memory::open(path, true); }).empty());
    std::ofstream(file, std::ios::binary) << intact;
  }
  EXPECT_EQ(Memory::open(path).size(), 5);
}

TEST(Memory, RefusesOtherDatabasesAndNewerFormats) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  Memory::create(path, 3).close();
  const auto change = [&](const char* sql) {
    reco::io::Database(path / "memory.sqlite", reco::io::DatabaseMode::read_write).execute(sql);
    return error_of([&] { Memory::open(path, true); });
  };
  EXPECT_TRUE(has(change("PRAGMA user_version = 3"), "format 3"));
  EXPECT_TRUE(has(change("PRAGMA user_version = 0"), "format 0"));
  EXPECT_TRUE(has(change("PRAGMA user_version = 2; CREATE TABLE more (x)"), "tables"));
  EXPECT_EQ(change("DROP TABLE more"), "");
  EXPECT_TRUE(has(change("UPDATE meta SET value = '4' WHERE name = 'dim'"), "meta"));
  EXPECT_TRUE(has(change("PRAGMA application_id = 5"), "no memory's"));
}

TEST(Memory, EveryStorageKeepsAndFinds) {
  const Folder folder;
  for (const auto storage : {reco::Storage::float16, reco::Storage::int8, reco::Storage::codes4, reco::Storage::codes2,
                             reco::Storage::codes1}) {
    const std::string name = storage_name(storage);
    Memory memory = Memory::create(folder / name, 64, "", storage);
    add_rows(memory, 0, 300);
    for (std::int64_t i = 300; i < 320; ++i) add_rows(memory, i, 1);
    memory.remove(key_list(10, 50));
    const auto rows = memory.rows();
    const Matrix images = memory.embeddings(rows, Modality::image);
    const auto check = [&](const Memory& m) {
      // Each row finds itself, and its score is that of the row as it is kept.
      const auto found = m.search(images, {.k = 3});
      for (std::size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(found.rows(static_cast<Eigen::Index>(i), 0), rows[i]);
      ASSERT_EQ(m.embeddings(rows, Modality::image), images);
      ASSERT_TRUE(m.verify().empty()) << m.verify()[0];
      ASSERT_EQ(m.info().storage, storage);
    };
    check(memory);
    for (const char* index : {"HNSW8", "IVF4", "SQ8"}) {
      memory.optimize({.index = index, .recall = 0.99});
      const auto found = memory.search(images, {.k = 1});
      std::int64_t hits = 0;
      for (std::size_t i = 0; i < rows.size(); ++i) hits += found.rows(static_cast<Eigen::Index>(i), 0) == rows[i];
      EXPECT_GE(hits, 260) << name << index;
    }
    memory.optimize({.index = "exact"});
    memory.compact();
    check(memory);
    memory.close();
    EXPECT_TRUE(Memory::repair(folder / name).empty());
    check(Memory::open(folder / name, true));
  }
  EXPECT_TRUE(has(error_of([&] { Memory::create(folder / "odd", 12, "", reco::Storage::codes4); }), "multiple of 8"));
  EXPECT_FALSE(fs::exists(folder / "odd"));
}

TEST(Memory, OpensAndUpgradesFormat1) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  {
    Memory memory = Memory::create(path, 8);
    add_rows(memory, 0, 5);
  }
  reco::io::Database(path / "memory.sqlite", reco::io::DatabaseMode::read_write)
      .execute("DROP TABLE sources; DELETE FROM meta WHERE name = 'storage'; PRAGMA user_version = 1");
  EXPECT_EQ(Memory::open(path, true).size(), 5);
  EXPECT_TRUE(Memory::open(path, true).verify().empty());
  Memory memory = Memory::open(path);
  add_rows(memory, 5, 2);
  memory.close();
  EXPECT_EQ(Memory::open(path, true).size(), 7);
  EXPECT_TRUE(Memory::open(path, true).verify().empty());
}

TEST(Memory, DuplicatesOfAnotherSet) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", 16), other = Memory::create(folder / "o", 16);
  add_rows(memory, 0, 700);
  add_rows(other, 1'000, 600);
  const Matrix images = memory.embeddings(std::vector<std::int64_t>{5, 690}, Modality::image);
  const Matrix near = images + 0.001F * random_rows(2, 16, 3);
  other.add(near, random_rows(2, 16, 4), {.keys = {"x", "y"}, .captions = {}, .metadata = {}});
  const auto found = memory.duplicates(other, 0.99F);
  ASSERT_EQ(found.size(), 2);
  std::set<std::pair<std::int64_t, std::int64_t>> pairs;
  for (const auto& d : found) pairs.insert({d.row, d.other});
  EXPECT_EQ(pairs, (std::set<std::pair<std::int64_t, std::int64_t>>{{5, 600}, {690, 601}}));
  EXPECT_GE(found[0].score, found[1].score);
  const auto places = memory.duplicates(5 * near, 0.99F);
  ASSERT_EQ(places.size(), 2);
  EXPECT_EQ(places[0].row == 5 ? 0 : 1, places[0].other);
  EXPECT_TRUE(memory.duplicates(other, 0.99F, Modality::text).empty());
  EXPECT_TRUE(memory.duplicates(Matrix(0, 16), 0.5F).empty());
  EXPECT_TRUE(has(error_of([&] { memory.duplicates(Matrix::Ones(1, 8), 0.5F); }), "16 columns, got 8"));
  EXPECT_TRUE(has(error_of([&] { memory.duplicates(Memory::create(folder / "p", 8), 0.5F); }), "dim 16"));
  EXPECT_TRUE(has(error_of([&] { memory.duplicates(other, 0.5F, Modality::image, [](auto, auto) { return false; }); }),
                  "[interrupted]"));
}

TEST(Memory, AttachedFilesStayWhereTheyAre) {
  const Folder folder;
  const fs::path path = folder / "m.reco", files = folder / "files";
  fs::create_directories(files);
  std::array<fs::path, 2> names{files / "img.npy", files / "text.npy"};
  const auto write = [&](const fs::path& file, const Matrix& rows) {
    const reco::RowFormat format(reco::Storage::float16, rows.cols());
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows.rows() * format.bytes()));
    for (Eigen::Index i = 0; i < rows.rows(); ++i) format.encode(rows.row(i).data(), &bytes[i * format.bytes()]);
    const std::string header = reco::io::npy_header("<f2", {rows.rows(), rows.cols()});
    const std::array parts{std::as_bytes(std::span(header)), std::span<const std::byte>(bytes)};
    reco::io::write_file_durably(file, parts);
  };
  const Matrix images = random_rows(20, 8, 1).rowwise().normalized(),
               texts = random_rows(20, 8, 2).rowwise().normalized();
  write(names[0], images);
  write(names[1], texts);
  Memory memory = Memory::create(path, 8);
  add_rows(memory, 100, 3);
  auto keys = key_list(0, 20);
  keys[7].clear();
  keys[9].clear();
  const auto attach = [&](const std::vector<std::string>& k) {
    return error_of([&] { memory.attach(names[0], names[1], {.keys = k, .captions = {}, .metadata = {}}); });
  };
  EXPECT_TRUE(has(attach(key_list(0, 19)), "(19, 8)"));
  EXPECT_TRUE(has(attach(key_list(90, 20)), "'key 100' is already"));
  write(names[1], 1.5F * texts);
  EXPECT_TRUE(has(attach(keys), "text.npy': row 0 must have length 1"));
  write(names[1], texts);
  ASSERT_EQ(attach(keys), "");
  EXPECT_EQ(memory.size(), 21);
  EXPECT_EQ(memory.info().attached, 2 * static_cast<std::int64_t>(fs::file_size(names[0])));
  EXPECT_LT(memory.info().bytes, 200'000);
  const auto best = [&] { return memory.search(images, {.k = 1}).rows.col(0).eval(); };
  const auto before = best();
  EXPECT_EQ(before(0), 3);
  EXPECT_NE(before(7), 10);
  memory.remove(key_list(4, 1));
  add_rows(memory, 200, 2);
  const auto removed = best();
  memory.compact();
  EXPECT_EQ(best(), removed);
  EXPECT_EQ(memory.info().removed, 3);  // in files that are not the memory's to change
  EXPECT_EQ(memory.size(), 22);
  EXPECT_TRUE(memory.verify().empty());
  memory.close();
  EXPECT_TRUE(Memory::repair(path).empty());
  memory = Memory::open(path);
  EXPECT_EQ(best(), removed);
  EXPECT_EQ(files_in(files).size(), 2);
  memory.close();
  put_byte(names[1], 140, '\x31');
  EXPECT_FALSE(Memory::open(path, true).verify().empty());
  write(names[1], texts);
  EXPECT_TRUE(Memory::open(path, true).verify().empty());
  fs::rename(names[1], files / "moved.npy");
  EXPECT_TRUE(has(error_of([&] { Memory::open(path); }), "text.npy' is gone: it holds rows of"));
  EXPECT_TRUE(has(error_of([&] { Memory::repair(path); }), "text.npy' is gone"));
  fs::rename(files / "moved.npy", names[1]);
  EXPECT_EQ(Memory::open(path).size(), 22);
}

TEST(Memory, SearchesRunBesideChanges) {
  const Folder folder;
  const fs::path path = folder / "m.reco";
  Memory memory = Memory::create(path, 16);
  add_rows(memory, 0, 200);
  const Memory reader = Memory::open(path, true);
  std::atomic<bool> done{false};
  std::atomic<int> bad{0}, searches{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      const Memory& mine = t % 2 == 0 ? memory : reader;
      const Matrix queries = random_rows(4, 16, t);
      while (!done) {
        const auto rows = mine.rows();
        const auto found = mine.search(queries, {.k = 10, .exclude_keys = {{"key 0"}}});
        const auto keys = mine.keys({found.rows.data(), 40});
        // At least 150 rows are always live, no search finds a half-written one, the excluded one or a row twice.
        const std::set<std::string> different(keys.begin(), keys.begin() + 10);
        const bool fine = rows.size() >= 150 && different.size() == 10 && !different.contains("key 0") &&
                          !different.contains("") && (found.partners.rowwise().norm().array() > 0.99F).all();
        bad += fine ? 0 : 1;
        ++searches;
      }
    });
  }
  for (std::int64_t i = 0; i < 60; ++i) {
    add_rows(memory, 200 + 3 * i, 3);
    memory.remove(key_list(i % 2 == 0 ? i / 2 : 200 + 3 * i, 1));
  }
  done = true;
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(bad, 0);
  EXPECT_GT(searches, 8);
  EXPECT_EQ(memory.size(), 320);
  EXPECT_EQ(reader.size(), 320);
  EXPECT_TRUE(memory.verify().empty());
}
