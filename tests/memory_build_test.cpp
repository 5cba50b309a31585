// SPDX-License-Identifier: Apache-2.0
// What building an index may take, which kind "auto" takes, and whose index is adopted.
#include <faiss/Index.h>
#include <faiss/IndexIDMap.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "memory_budget.h"
#include "memory_choice.h"
#include "reco/memory.h"
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

void add_rows(Memory& memory, const Matrix& rows) {
  reco::RowInfo info;
  for (Eigen::Index i = 0; i < rows.rows(); ++i) info.keys.push_back(std::to_string(i));
  memory.add(rows, -rows, info);
}

void put_text(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

/// The number behind "needs" in what a refusal says.
std::int64_t needed(Memory& memory, const std::string& index) {
  const std::string error = error_of([&] { memory.optimize({.index = index, .max_build_bytes = 1}); });
  EXPECT_TRUE(has(error, "bytes to build, allowed are 1")) << index << error;
  return std::stoll(error.substr(error.find("needs ") + 6));
}

/// The most memory of the process's own beyond what it had, while work runs.
template <typename Work>
std::int64_t growth(const Work& work) {
  const auto now = [] {
    std::int64_t kilobytes = 0;
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("RssAnon:")) kilobytes = std::stoll(line.substr(8));
    }
    return kilobytes << 10;
  };
  malloc_trim(0);
  std::atomic<bool> done{false};
  const std::int64_t before = now();
  std::int64_t most = before;
  std::thread watch([&] {
    for (; !done; std::this_thread::sleep_for(std::chrono::milliseconds(1))) most = std::max(most, now());
  });
  work();
  done = true;
  watch.join();
  return most - before;
}

/// Other limits for "auto" while it lives.
class Limits {
 public:
  explicit Limits(const reco::ChoiceLimits& limits) : saved_(std::exchange(reco::choice_limits(), limits)) {}
  ~Limits() { reco::choice_limits() = saved_; }

 private:
  reco::ChoiceLimits saved_;
};

}  // namespace

TEST(MemoryBuild, RespectsControlGroups) {
  const Folder folder;
  const std::int64_t machine = reco::available_memory(folder / "nothing");
  EXPECT_GT(machine, 1 << 28);
  const auto available = [&](const std::string& name) { return reco::available_memory(folder / name); };
  put_text(folder / "container/sys/fs/cgroup/memory.max", "104857600\n");
  EXPECT_EQ(available("container"), 104'857'600);
  put_text(folder / "none/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(available("none"), machine);
  // The group itself has no limit, the one that holds it has.
  put_text(folder / "slice/proc/self/cgroup", "0::/user.slice/a.scope\n");
  put_text(folder / "slice/sys/fs/cgroup/user.slice/a.scope/memory.max", "max\n");
  put_text(folder / "slice/sys/fs/cgroup/user.slice/memory.max", "200000000\n");
  EXPECT_EQ(available("slice"), 200'000'000);
  put_text(folder / "old/proc/self/cgroup", "12:cpu,cpuacct:/b\n9:memory:/a/b\n");
  put_text(folder / "old/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(available("old"), machine);
  put_text(folder / "old/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "50000000\n");
  EXPECT_EQ(available("old"), 50'000'000);
  EXPECT_EQ(reco::default_budget(), reco::available_memory() / 2);
}

TEST(MemoryBuild, RefusesWhatItPredictsWithTheNumbers) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", 32);
  add_rows(memory, random_rows(500, 32, 1));
  for (const char* index : {"Flat", "SQ8", "HNSW8", "HNSW8,SQ8", "IVF16,Flat", "PCA16,IVF4,SQ8", "IVF4,PQ4x4"}) {
    const std::int64_t bytes = needed(memory, index);
    EXPECT_GT(bytes, 500 * 8) << index;
    EXPECT_NE(error_of([&] { memory.optimize({.index = index, .max_build_bytes = bytes - 1}); }), "") << index;
    EXPECT_EQ(error_of([&] { memory.optimize({.index = index, .max_build_bytes = bytes}); }), "") << index;
  }
  EXPECT_GT(needed(memory, "Flat"), 500 * 32 * 4);
  EXPECT_GT(needed(memory, "HNSW32"), needed(memory, "HNSW8") + 500 * 2 * 24 * 4);
}

TEST(MemoryBuild, KeepsWhatItPredicts) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", 64);
  constexpr std::int64_t rows = 20'000;
  add_rows(memory, random_rows(rows, 64, 1));
  constexpr std::int64_t beside = 8 << 20;  // queries, SQLite's pages, stacks
  for (const char* index : {"Flat", "IVF16,PQ8", "IVF64,Flat", "HNSW4"}) {
    const std::int64_t bytes = needed(memory, index);
    EXPECT_LT(bytes, 6 * rows * 64 * 4) << index;  // no guess that would refuse everything
    const std::int64_t taken =
        growth([&] { memory.optimize({.index = index, .recall = 0.1, .max_build_bytes = bytes}); });
    EXPECT_LE(taken, bytes + beside) << index;
    std::cout << index << ": " << bytes << " predicted, " << taken << " taken\n";
  }
}

TEST(MemoryBuild, ChoosesByRowsAndBytes) {
  const Limits limits({.exact_rows = 1'000, .graph_rows = 10'000});
  const reco::RowFormat format(reco::Storage::float16, 64);
  const auto choices = [&](std::int64_t rows, std::int64_t bytes) {
    return reco::index_choices(rows, format, {.max_bytes = bytes});
  };
  using Kinds = std::vector<std::string>;
  constexpr std::int64_t plenty = 1 << 30;
  EXPECT_EQ(choices(999, plenty), Kinds{"exact"});
  EXPECT_EQ(choices(10'000, plenty), (Kinds{"HNSW32", "IVF256,Flat"}));
  EXPECT_EQ(choices(10'001, plenty), Kinds{"IVF256,Flat"});
  EXPECT_EQ(choices(10'000, 10'000 * (128 + 8)), Kinds{"IVF256,Flat"});  // no room for links
  EXPECT_EQ(choices(10'000, 10'000 * (128 + 8) - 1), (Kinds{"IVF256,PQ64", "IVF256,SQ8"}));
  EXPECT_EQ(choices(10'000, 10'000 * (32 + 16)), (Kinds{"IVF256,PQ32", "IVF256,SQ4"}));
  EXPECT_EQ(choices(10'000, 10'000 * (8 + 16)), Kinds{"IVF256,PQ8"});
  EXPECT_TRUE(has(error_of([&] { choices(10'000, 10'000); }), "fits into 10000 bytes"));
  EXPECT_EQ(reco::index_choices(10, format, {.index = "SQ8"}), Kinds{"SQ8"});
  EXPECT_EQ(choices(1'000, plenty)[1], "IVF25,Flat");
}

TEST(MemoryBuild, AutoTakesTheFirstKindThatReachesTheRecall) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", 32);
  add_rows(memory, random_rows(1'500, 32, 1));
  const auto built = [&](const std::vector<std::string>& kinds, double recall, std::int64_t max_build_bytes = 0) {
    const Limits limits({.exact_rows = 1'000, .graph_rows = 0, .kinds = kinds});
    std::int64_t last = 0, total = 0;
    const auto infos = memory.optimize({.recall = recall, .max_build_bytes = max_build_bytes},
                                       [&](std::int64_t done, std::int64_t all) {
                                         EXPECT_GE(done, last);
                                         EXPECT_LE(done, all);
                                         last = done, total = all;
                                         return true;
                                       });
    EXPECT_EQ(last, total);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder / "m/index"), {}), 2);
    EXPECT_TRUE(memory.verify().empty());
    EXPECT_EQ(memory.info().indexes[1].index, infos[1].index);
    return infos[0];
  };
  EXPECT_EQ(built({"SQ8", "IVF8,Flat"}, 0.9).index, "SQ8");
  const auto second = built({"PQ1x2", "SQ8"}, 0.9);  // two bits a row tell nothing
  EXPECT_EQ(second.index, "SQ8");
  EXPECT_GE(second.recall, 0.9);
  const auto best = built({"PQ1x2", "PQ2x3", "PQ1x4"}, 1.0);  // none reaches it: the best, and how good it is
  EXPECT_NE(best.index, "PQ1x2");
  EXPECT_LT(best.recall, 1.0);
  // What needs too much to build gives way to what does not.
  const std::int64_t flat = needed(memory, "Flat");
  EXPECT_LT(needed(memory, "SQ4"), flat);
  EXPECT_EQ(built({"Flat", "SQ4"}, 0.9, flat - 1).index, "SQ4");
  EXPECT_TRUE(has(error_of([&] { built({"Flat", "SQ4"}, 0.9, 1); }), "SQ4 over 1500 rows needs"));
}

TEST(MemoryBuild, AdoptsOnlyWhatFindsRowsUnderTheirOwnNumbers) {
  const Folder folder;
  // Rows that follow each other are nearly the same, as pictures of a film are.
  Matrix rows = random_rows(600, 32, 1);
  for (Eigen::Index i = 1; i < rows.rows(); ++i) rows.row(i) = 0.95F * rows.row(i - 1) + 0.3F * rows.row(i);
  Memory memory = Memory::create(folder / "m", 32);
  add_rows(memory, rows);
  const Matrix unit = memory.embeddings(memory.rows(), Modality::image);
  const auto adopt = [&](const char* kind, const std::vector<std::int64_t>& numbers) {
    const std::unique_ptr<faiss::Index> inner(faiss::index_factory(32, kind, faiss::METRIC_INNER_PRODUCT));
    inner->train(unit.rows(), unit.data());
    faiss::IndexIDMap map(inner.get());
    map.add_with_ids(unit.rows(), unit.data(), numbers.data());
    faiss::write_index(&map, (folder / "i.index").c_str());
    return error_of([&] { memory.adopt_index(folder / "i.index", Modality::image, {.recall = 0.1}); });
  };
  std::vector<std::int64_t> right(600);
  std::iota(right.begin(), right.end(), std::int64_t{0});
  auto shifted = right, mixed = right;
  std::rotate(shifted.begin(), shifted.begin() + 1, shifted.end());
  for (std::size_t i = 0; i + 300 < mixed.size(); i += 2) std::swap(mixed[i], mixed[i + 300]);
  const std::string refused = "no index over these rows";
  for (const char* kind : {"Flat", "SQ8", "IVF4,PQ16x4"}) {
    EXPECT_EQ(adopt(kind, right), "") << kind;
    EXPECT_TRUE(has(adopt(kind, shifted), refused)) << kind;
  }
  for (const char* kind : {"Flat", "SQ8"}) EXPECT_TRUE(has(adopt(kind, mixed), refused)) << kind;
}
