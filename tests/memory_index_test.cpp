// SPDX-License-Identifier: Apache-2.0
#include "memory_index.h"

#include <faiss/Index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "io/file.h"
#include "io/safetensors.h"
#include "memory_search.h"
#include "reco/memory.h"
#include "support.h"

namespace fs = std::filesystem;
using reco::Matrix;
using reco::Memory;
using reco::Modality;

namespace {

constexpr std::int64_t kDim = 24;

/// Rows around `centres` centres.
Matrix clustered(std::int64_t n, unsigned seed, std::int64_t centres = 40) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  const Matrix middle = Matrix::NullaryExpr(centres, kDim, [&] { return normal(generator); });
  generator.seed(seed);
  Matrix rows = Matrix::NullaryExpr(n, kDim, [&] { return 0.5F * normal(generator); });
  for (Eigen::Index i = 0; i < n; ++i) rows.row(i) += middle.row(static_cast<Eigen::Index>(generator() % centres));
  return rows;
}

std::vector<std::string> key_list(std::int64_t first, std::int64_t count) {
  std::vector<std::string> keys;
  for (std::int64_t i = first; i < first + count; ++i) keys.push_back(std::to_string(i));
  return keys;
}

void add_rows(Memory& memory, std::int64_t first, std::int64_t count) {
  const auto seed = static_cast<unsigned>(first + 1);
  memory.add(clustered(count, seed), clustered(count, seed + 1'000'000),
             {.keys = key_list(first, count), .captions = {}, .metadata = {}});
}

/// The share of the exact neighbours that are found; what is found must have its exact score.
double recall(const Memory& memory, const Matrix& queries, reco::SearchOptions options) {
  const auto found = memory.search(queries, options);
  options.exact = true;
  const auto truth = memory.search(queries, options);
  std::int64_t hits = 0, all = 0;
  for (Eigen::Index i = 0; i < queries.rows(); ++i) {
    std::set<std::int64_t> seen;
    for (Eigen::Index j = 0; j < options.k; ++j) {
      EXPECT_TRUE(found.rows(i, j) < 0 || seen.insert(found.rows(i, j)).second);
      for (Eigen::Index t = 0; t < options.k; ++t) {
        if (found.rows(i, j) < 0 || truth.rows(i, t) != found.rows(i, j)) continue;
        EXPECT_EQ(truth.scores(i, t), found.scores(i, j));
        EXPECT_EQ(truth.partners.row(i * options.k + t), found.partners.row(i * options.k + j));
        ++hits;
      }
      if (truth.rows(i, j) >= 0) ++all;
    }
  }
  return all == 0 ? 1 : static_cast<double>(hits) / static_cast<double>(all);
}

}  // namespace

class EveryIndex : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(MemoryIndex, EveryIndex,
                         testing::Values("HNSW16", "HNSW8,Flat", "IVF32", "IVF16,Flat", "IVF16,PQ8", "SQ8", "PCA12,SQ8",
                                         "HNSW8,SQ8"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), ',', '_');
                           return name;
                         });

TEST_P(EveryIndex, FindsWhatExactSearchFinds) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 3'000);
  std::int64_t last = 0;
  const auto built =
      memory.optimize({.index = GetParam(), .recall = 0.97, .k = 5}, [&](std::int64_t done, std::int64_t) {
        EXPECT_GE(done, last);
        last = done;
        return true;
      });
  EXPECT_EQ(last, 6'000);
  ASSERT_EQ(built.size(), 2);
  const Matrix queries = clustered(1'000, 99);
  for (const auto side : {Modality::image, Modality::text}) {
    const auto& info = built[side == Modality::image ? 0 : 1];
    EXPECT_EQ(info.index, GetParam());
    EXPECT_EQ(info.rows, 3'000);
    EXPECT_GE(info.recall, 0.97);
    EXPECT_GE(recall(memory, queries, {.k = 5, .modality = side}), 0.94);  // 256 held-out queries: four deviations
    EXPECT_GE(recall(memory, queries.topRows(1), {.k = 1, .modality = side}), 0.0);
  }
  const auto before = memory.search(queries, {.k = 5});
  memory.close();
  memory = Memory::open(folder / "m", true);
  EXPECT_EQ(memory.search(queries, {.k = 5}).rows, before.rows);
  EXPECT_EQ(memory.info().indexes.size(), 2);
  EXPECT_TRUE(memory.verify().empty());
}

TEST_P(EveryIndex, SeesEveryChangeAtOnce) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 2'000);
  memory.optimize({.index = GetParam(), .recall = 0.9});
  const Matrix queries = clustered(20, 98);
  const auto first = memory.search(queries, {.k = 10});
  const auto found = memory.keys({first.rows.data(), static_cast<std::size_t>(first.rows.size())});
  const std::set<std::string> gone(found.begin(), found.end());
  memory.remove(std::vector<std::string>(gone.begin(), gone.end()));
  add_rows(memory, 5'000, 300);
  const auto second = memory.search(queries, {.k = 10});
  const auto left = memory.keys({second.rows.data(), static_cast<std::size_t>(second.rows.size())});
  std::int64_t newer = 0;
  for (const std::string& key : left) {
    EXPECT_FALSE(gone.contains(key));
    newer += !key.empty() && std::stoll(key) >= 5'000;
  }
  EXPECT_GT(newer, 0);
  EXPECT_EQ((second.rows.array() < 0).count(), 0);
  // The keys and the near-duplicates that a query leaves out.
  std::vector<std::vector<std::string>> excluded;
  for (Eigen::Index i = 0; i < 20; ++i) excluded.push_back({left.begin() + i * 10, left.begin() + i * 10 + 5});
  const auto third = memory.search(queries, {.k = 10, .exclude_keys = excluded, .max_similarity = 0.9F});
  for (Eigen::Index i = 0; i < 20; ++i) {
    for (Eigen::Index j = 0; j < 10; ++j) {
      EXPECT_LE(third.scores(i, j), 0.9F);
      for (Eigen::Index t = 0; t < 5; ++t) EXPECT_NE(third.rows(i, j), second.rows(i, t));
    }
  }
  // All but a few: an index that finds too few gives way to exact search.
  std::vector<std::string> most;
  for (const std::int64_t row : memory.rows()) {
    if (row % 400 != 0) most.push_back(memory.keys(std::array{row})[0]);
  }
  memory.remove(most);
  EXPECT_EQ(recall(memory, queries, {.k = 10}), 1.0);
}

TEST_P(EveryIndex, FindsAmongThoseThatAFilterLeaves) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  reco::RowInfo info{.keys = key_list(0, 3'000), .captions = {}, .metadata = {}};
  for (std::int64_t i = 0; i < 3'000; ++i) info.metadata.push_back("{\"n\": " + std::to_string(i * 7 % 60) + "}");
  memory.add(clustered(3'000, 1), clustered(3'000, 2), info);
  memory.optimize({.index = GetParam(), .recall = 0.97, .k = 10});
  const Matrix queries = clustered(200, 99);
  // FAISS's own graphs are linked in another order each time, and do not look harder for one search.
  const double least = std::string(GetParam()) == "HNSW8,SQ8" ? 0.8 : 0.93;
  for (const int below : {30, 10, 2}) {  // a half, a sixth, and so few that they are compared one by one
    const std::string where = "json_extract(metadata, '$.n') < " + std::to_string(below);
    EXPECT_GE(recall(memory, queries, {.k = 10, .where = where}), below == 2 ? 1.0 : least) << where;
  }
}

TEST(MemoryIndex, AllListsGiveExactSearch) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 1'000);
  memory.remove(std::vector<std::string>{"3", "700"});
  const auto built = memory.optimize({.index = "IVF4,Flat", .recall = 1.0, .k = 50});
  if (built[0].effort < 4) GTEST_SKIP() << "fewer lists were enough";
  for (const Eigen::Index n : {1, 2, 70}) {
    const Matrix queries = clustered(n, 5);
    const auto found = memory.search(queries, {.k = 30}), exact = memory.search(queries, {.k = 30, .exact = true});
    EXPECT_EQ(found.rows, exact.rows);
    EXPECT_EQ(found.scores, exact.scores);
  }
}

TEST(MemoryIndex, AutoTakesExactSearchForFewRowsAndDropsIndexes) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  EXPECT_EQ(memory.optimize()[0].index, "exact");
  add_rows(memory, 0, 500);
  memory.optimize({.index = "HNSW8"});
  EXPECT_EQ(memory.info().indexes.size(), 2);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m/index"), {}), 2);
  memory.optimize({.index = "HNSW4"});
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m/index"), {}), 2);  // the old ones are gone
  EXPECT_EQ(memory.optimize()[1].index, "exact");
  EXPECT_TRUE(memory.info().indexes.empty());
  EXPECT_TRUE(fs::is_empty(folder / "m/index"));
}

TEST(MemoryIndex, RefusesWhatCannotBeBuiltAndKeepsWhatWas) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 400);
  memory.optimize({.index = "HNSW8"});
  const auto error = [&](const reco::OptimizeOptions& options, const reco::Progress& progress = {}) {
    return error_of([&] { memory.optimize(options, progress); });
  };
  EXPECT_TRUE(has(error({.index = "nonsense"}), "could not parse"));
  EXPECT_TRUE(has(error({.index = "IVF500,Flat"}), "no more than there are rows"));
  EXPECT_TRUE(has(error({.index = "PQ7"}), "FAISS"));
  EXPECT_TRUE(has(error({.index = ""}), "factory"));
  EXPECT_TRUE(has(error({.recall = 1.5}), "recall"));
  EXPECT_TRUE(has(error({.k = 0}), "k must"));
  EXPECT_TRUE(has(error({.index = "HNSW32", .max_build_bytes = 1'000}), "needs"));
  EXPECT_TRUE(has(error({.index = "IVF8,Flat", .max_build_bytes = 1'000}), "needs"));
  EXPECT_TRUE(has(error({.index = "SQ8", .max_build_bytes = 100}), "needs"));
  EXPECT_TRUE(has(error({.index = "HNSW8"}, [](auto, auto) { return false; }), "[interrupted]"));
  EXPECT_EQ(memory.info().indexes[0].index, "HNSW8");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m/index"), {}), 2);
  Memory reader = Memory::open(folder / "m", true);
  EXPECT_TRUE(has(error_of([&] { reader.optimize(); }), "reading only"));
}

TEST(MemoryIndex, AnInterruptedBuildGoesOn) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 34'000);
  for (const char* index : {"HNSW4", "IVF16,Flat", "SQ8"}) {
    const auto build = [&](std::int64_t stop_at, std::vector<std::int64_t>& seen) {
      return error_of([&] {
        memory.optimize({.index = index}, [&](std::int64_t done, std::int64_t) {
          seen.push_back(done);
          return done < stop_at;
        });
      });
    };
    std::vector<std::int64_t> first, second, third;
    EXPECT_TRUE(has(build(30'000, first), "[interrupted]"));
    ASSERT_GT(first.size(), 2);
    EXPECT_EQ(first.front(), 0);
    EXPECT_GE(first.back(), 30'000);
    EXPECT_LT(first[first.size() - 2], 30'000);
    memory.close();
    memory = Memory::open(folder / "m");
    EXPECT_TRUE(memory.verify().empty());
    EXPECT_EQ(build(1 << 30, second), "");
    ASSERT_GT(second.size(), 2);
    EXPECT_EQ(second[1], first.back());  // where it was
    EXPECT_EQ(second.back(), 68'000);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m/index"), {}), 2);
    EXPECT_GE(recall(memory, clustered(50, 9), {.k = 10}), 0.9);
    if (index != std::string("SQ8")) continue;
    // A checkpoint that is damaged: from the beginning.
    EXPECT_NE(build(30'000, third), "");
    for (const auto& file : fs::directory_iterator(folder / "m/index")) {
      const std::string name = file.path().filename().string();
      if (!name.starts_with("checkpoint_image") || name.ends_with(".sha256")) continue;
      std::fstream(file.path(), std::ios::binary | std::ios::in | std::ios::out).seekp(3'000).put('\x55');
    }
    third.clear();
    EXPECT_EQ(build(1 << 30, third), "");
    EXPECT_EQ(third[1], first[1]);
  }
}

TEST(MemoryIndex, EffortReachesIndexesOfFaiss) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 3'000);
  const Matrix queries = clustered(100, 99);
  for (const char* index : {"IVF64,SQ8", "PCA16,IVF64,SQ8"}) {
    memory.optimize({.index = index, .recall = 0.8});
    const double little = recall(memory, queries, {.k = 10, .effort = 1});
    const double much = recall(memory, queries, {.k = 10, .effort = 64});
    EXPECT_GT(much, little) << index;
    EXPECT_GT(much, 0.9) << index;
  }
  memory.optimize({.index = "SQ8"});
  EXPECT_GT(recall(memory, queries, {.k = 10, .effort = 5}), 0.9);  // has none
}

TEST(MemoryIndex, AdoptsWhatFaissWrote) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 2'000);
  const Matrix images = memory.embeddings(memory.rows(), Modality::image);
  const fs::path file = folder / "image.index";
  const Matrix queries = clustered(50, 98);
  std::int64_t refused = 0, taken = 0;
  for (const auto& [name, metric] :
       std::vector<std::pair<const char*, faiss::MetricType>>{{"Flat", faiss::METRIC_INNER_PRODUCT},
                                                              {"HNSW16", faiss::METRIC_INNER_PRODUCT},
                                                              {"IVF32,Flat", faiss::METRIC_L2},
                                                              {"OPQ8,IVF16,PQ8", faiss::METRIC_INNER_PRODUCT},
                                                              {"IDMap,SQ8", faiss::METRIC_L2},
                                                              {"IVF16,SQ4", faiss::METRIC_INNER_PRODUCT}}) {
    const std::unique_ptr<faiss::Index> index(faiss::index_factory(kDim, name, metric));
    index->train(images.rows(), images.data());
    std::vector<faiss::Index::idx_t> ids(2'000);
    std::iota(ids.begin(), ids.end(), 0);
    std::string(name).starts_with("IDMap") ? index->add_with_ids(2'000, images.data(), ids.data())
                                           : index->add(2'000, images.data());
    faiss::write_index(index.get(), file.c_str());
    const auto info = memory.adopt_index(file, Modality::image, {.recall = 0.95});
    EXPECT_GE(info.recall, 0.9) << name;
    EXPECT_GE(recall(memory, queries, {.k = 10}), 0.85) << name;
    // Whatever byte of it is wrong, it is refused or it is safe to search.
    const std::string intact = reco::io::read_file(file);
    std::mt19937 generator(1);
    for (int i = 0; i < 4; ++i) {
      std::string bytes = intact;
      const auto place = i < 3 ? generator() % 200 : generator() % bytes.size();
      bytes[place] = static_cast<char>(bytes[place] ^ (1 << (generator() % 8)));
      std::ofstream(folder / "bad.index", std::ios::binary) << bytes;
      const std::string error = error_of([&] { memory.adopt_index(folder / "bad.index", Modality::image); });
      EXPECT_TRUE(error.empty() || has(error, "bad.index")) << error;
      error.empty() ? ++taken : ++refused;
      memory.search(queries, {.k = 10});
    }
    memory.adopt_index(file, Modality::image);
  }
  std::cout << refused << " refused, " << taken << " taken\n";
  EXPECT_GT(refused, 0);
  const auto bad = [&] { return error_of([&] { memory.adopt_index(folder / "bad.index", Modality::image); }); };
  std::ofstream(folder / "bad.index") << "IxFI no index of FAISS";
  EXPECT_TRUE(has(bad(), "bad.index"));
  const std::unique_ptr<faiss::Index> other(faiss::index_factory(kDim, "Flat", faiss::METRIC_INNER_PRODUCT));
  const Matrix strangers = clustered(2'000, 12'345);
  other->add(2'000, strangers.data());
  faiss::write_index(other.get(), (folder / "bad.index").c_str());
  EXPECT_TRUE(has(bad(), "no index over these rows"));
  other->add(2'000, strangers.data());
  faiss::write_index(other.get(), (folder / "bad.index").c_str());
  EXPECT_TRUE(has(bad(), "1 to 2000 rows, it has 4000"));
  EXPECT_EQ(memory.info().indexes[0].index, "adopted");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m/index"), {}), 1);
  add_rows(memory, 3'000, 10);
  memory.close();
  memory = Memory::open(folder / "m");
  EXPECT_TRUE(memory.verify().empty());
  EXPECT_GE(recall(memory, queries, {.k = 10}), 0.85);
}

TEST(MemoryIndex, ADamagedIndexIsAnErrorAndExactSearchGoesOn) {
  const Folder folder;
  for (const char* index : {"HNSW8", "SQ8"}) {
    Memory memory = Memory::create(folder / index, kDim);
    add_rows(memory, 0, 300);
    memory.optimize({.index = index});
    memory.close();
    const fs::path file = fs::directory_iterator(folder / index / "index")->path();
    const auto side = file.filename().string().starts_with("image") ? Modality::image : Modality::text;
    std::fstream(file, std::ios::binary | std::ios::in | std::ios::out).seekp(200).put('\x7f');
    memory = Memory::open(folder / index);
    const Matrix query = clustered(1, 3);
    EXPECT_TRUE(has(error_of([&] { memory.search(query, {.modality = side}); }), "checksum"));
    EXPECT_EQ(memory.search(query, {.modality = side, .exact = true}).rows(0, 9) >= 0, true);
    EXPECT_EQ(memory.verify().size(), 1);
    fs::remove(file);  // as when another process replaced it just now
    EXPECT_EQ(recall(memory, query, {.modality = side}), 1.0);
    EXPECT_EQ(memory.verify().size(), 1);
    memory.optimize({.index = index});
    EXPECT_TRUE(memory.verify().empty());
  }
}

TEST(MemoryIndex, HostileFilesAreErrors) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 2);
  reco::MemorySnapshot snapshot;
  snapshot.format = reco::RowFormat(reco::Storage::float16, kDim);
  const std::vector<reco::Half> halves(2 * kDim, 0x3000);
  snapshot.segments.push_back(
      {.first_row = 0,
       .end_row = 2,
       .rows = 2,
       .numbers = nullptr,
       .sides = {reinterpret_cast<const std::byte*>(halves.data()), reinterpret_cast<const std::byte*>(halves.data())},
       .map = {},
       .chunk = {},
       .removed_bits = {}});
  snapshot.rows = snapshot.present = 2;
  const reco::MemorySearch search{.k = 2};
  const Matrix query = Matrix::Ones(1, kDim);
  const reco::QueryGroup group(snapshot, search, query, 0, 1);

  using Numbers = std::vector<std::int64_t>;
  const auto bytes = [](const auto& values) { return std::as_bytes(std::span(values)); };
  const auto graph = [&](const Numbers& rows, const Numbers& offsets, const std::vector<std::int32_t>& links,
                         const std::string& m, const std::string& entry, const std::string& levels) {
    reco::io::write_safetensors(folder / "g",
                                {{"rows", {"I64", {static_cast<std::int64_t>(rows.size())}, bytes(rows)}},
                                 {"offsets", {"I64", {static_cast<std::int64_t>(offsets.size())}, bytes(offsets)}},
                                 {"links", {"I32", {static_cast<std::int64_t>(links.size())}, bytes(links)}}},
                                {{"M", m}, {"entry", entry}, {"levels", levels}});
    return error_of([&] {
      reco::Candidates best(group);
      reco::load_graph(folder / "g")->search(group, best);
    });
  };
  EXPECT_EQ(graph({0, 1}, {0, 2, 4}, {1, -1, 0, -1}, "1", "0", "0"), "");
  const std::string damaged = "is damaged";
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 4}, {7, -1, 0, -1}, "1", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 9}, {0, 2, 4}, {1, -1, 0, -1}, "1", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, -5}, {0, 2, 4}, {1, -1, 0, -1}, "1", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 400}, {1, -1, 0, -1}, "1", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {-2, 2, 4}, {1, -1, 0, -1}, "1", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2}, {1, -1}, "1", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 4}, {1, -1, 0, -1}, "1", "2", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 4}, {1, -1, 0, -1}, "1", "-1", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 4}, {1, -1, 0, -1}, "1", "0", "3"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 4}, {1, -1, 0, -1}, "9000", "0", "0"), damaged));
  EXPECT_TRUE(has(graph({0, 1}, {0, 2, 4}, {1, -1, 0, -1}, "", "0", "0"), damaged));

  const std::vector<reco::Half> centroids(2 * kDim, 0x3000);
  const auto lists = [&](const Numbers& offsets, const Numbers& rows) {
    reco::io::write_safetensors(folder / "l",
                                {{"centroids", {"F16", {2, kDim}, bytes(centroids)}},
                                 {"offsets", {"I64", {static_cast<std::int64_t>(offsets.size())}, bytes(offsets)}},
                                 {"rows", {"I64", {static_cast<std::int64_t>(rows.size())}, bytes(rows)}}},
                                {});
    return error_of([&] {
      reco::Candidates best(group);
      const auto index = reco::load_lists(folder / "l", kDim);
      index->set_effort(2, 1);
      index->search(group, best);
    });
  };
  EXPECT_EQ(lists({0, 1, 2}, {0, 1}), "");
  EXPECT_TRUE(has(lists({0, 1, 2}, {0, 2}), damaged));
  EXPECT_TRUE(has(lists({0, 1, 2}, {-1, 1}), damaged));
  EXPECT_TRUE(has(lists({0, 9, 2}, {0, 1}), damaged));
  EXPECT_TRUE(has(lists({0, 1, 3}, {0, 1}), damaged));
  EXPECT_TRUE(has(lists({0, 2}, {0, 1}), damaged));
  EXPECT_TRUE(has(error_of([&] { reco::load_lists(folder / "l", kDim + 1); }), damaged));
  std::ofstream(folder / "f") << "IxFI no index of FAISS";
  EXPECT_TRUE(has(error_of([&] { reco::load_faiss(folder / "f", kDim); }), "FAISS"));
}

TEST(MemoryIndex, OptimizeRunsBesideSearchesAndChanges) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  add_rows(memory, 0, 1'500);
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> searches{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      while (!stop) {
        const auto found =
            memory.search(clustered(3, t), {.k = 5, .modality = t == 0 ? Modality::text : Modality::image});
        EXPECT_EQ((found.rows.array() < 0).count(), 0);
        ++searches;
      }
    });
  }
  threads.emplace_back([&] {
    for (std::int64_t i = 0; !stop; ++i) {
      add_rows(memory, 10'000 + 10 * i, 10);
      memory.remove(key_list(10'000 + 10 * i, 5));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  for (const char* index : {"HNSW8", "IVF8,Flat", "SQ8", "exact"}) {
    memory.optimize({.index = index});
    memory.compact();
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  EXPECT_GT(searches, 0);
  EXPECT_TRUE(memory.verify().empty());
}
