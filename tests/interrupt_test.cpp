// SPDX-License-Identifier: Apache-2.0
#include "reco/interrupt.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <numeric>
#include <thread>

#include "parallel.h"
#include "reco/reco.h"

namespace reco {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

/// Random unit rows; their partners are the same rows.
Matrix unit_rows(std::int64_t rows, std::int64_t dim) {
  std::srand(7);
  Matrix out = Matrix::Random(rows, dim);
  out.rowwise().normalize();
  return out;
}

/// Asks to stop once this much time has passed.
InterruptScope after(std::chrono::milliseconds time) {
  return InterruptScope([end = Clock::now() + time] { return Clock::now() >= end; });
}

class InterruptTest : public ::testing::Test {
 protected:
  fs::path folder_ = fs::temp_directory_path() / ("reco_interrupt_test_" + std::to_string(::getpid()));
  void TearDown() override { fs::remove_all(folder_); }

  Memory memory(const Matrix& rows) {
    Memory made = Memory::create(folder_, rows.cols());
    RowInfo info;
    for (std::int64_t i = 0; i < rows.rows(); ++i) info.keys.push_back(std::to_string(i));
    made.add(rows, rows, info);
    return made;
  }
};

TEST_F(InterruptTest, NothingStopsWithoutAScope) {
  EXPECT_FALSE(interrupted());
  EXPECT_NO_THROW(check_interrupt());
}

TEST_F(InterruptTest, IsNotAskedByShortWorkAndStaysStopped) {
  int asked = 0;
  const InterruptScope scope([&] { return ++asked > 0; });
  EXPECT_FALSE(interrupted());
  EXPECT_EQ(asked, 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  EXPECT_TRUE(interrupted());
  EXPECT_TRUE(interrupted());
  EXPECT_EQ(asked, 1);
  EXPECT_THROW(check_interrupt(), Interrupted);
}

TEST_F(InterruptTest, TheInnermostScopeCounts) {
  const InterruptScope outer([] { return true; });
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  {
    const InterruptScope to_the_end({});
    EXPECT_FALSE(interrupted());
  }
  EXPECT_TRUE(interrupted());
  std::thread([] { EXPECT_FALSE(interrupted()); }).join();
}

TEST_F(InterruptTest, ParallelWorkEndsEarly) {
  std::atomic<int> done = 0;
  const auto scope = after(std::chrono::milliseconds(150));
  const auto work = [&](std::int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++done;
  };
  EXPECT_THROW(parallel_for(100'000, work, 2), Interrupted);
  EXPECT_GT(done, 10);
  EXPECT_LT(done, 5'000);
}

TEST_F(InterruptTest, SearchStopsAndTheMemoryGoesOn) {
  const Matrix rows = unit_rows(20'000, 256);
  const Memory made = memory(rows);
  const auto start = Clock::now();
  {
    const auto scope = after(std::chrono::milliseconds(100));
    EXPECT_THROW(
        {
          for (int i = 0; i < 1'000; ++i) made.search(rows, {.k = 10});
        },
        Interrupted);
  }
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(made.search(rows.topRows(1), {.k = 1}).rows(0, 0), 0);
}

TEST_F(InterruptTest, AChangeThatIsStoppedHasNotHappened) {
  const Matrix rows = unit_rows(50'000, 64);
  Memory made = memory(rows.topRows(100));
  RowInfo info;
  for (int i = 0; i < 50'000; ++i) info.keys.push_back("new " + std::to_string(i));
  {
    const InterruptScope scope([] { return true; });  // as soon as it is asked, in the middle of the rows' words
    EXPECT_THROW(made.add(rows, rows, info), Interrupted);
  }
  EXPECT_EQ(made.size(), 100);
  made.close();
  Memory again = Memory::open(folder_);
  EXPECT_EQ(again.size(), 100);
  EXPECT_TRUE(again.verify().empty());
  again.add(rows, rows, info);
  EXPECT_EQ(again.size(), 50'100);
}

TEST_F(InterruptTest, TrainingOfListsStopsInsideFaiss) {
  const Matrix rows = unit_rows(30'000, 256);
  Memory made = memory(rows);
  const auto start = Clock::now();
  {
    const auto scope = after(std::chrono::milliseconds(300));
    EXPECT_THROW(made.optimize({.index = "IVF2048,Flat"}), Interrupted);
  }
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
  EXPECT_TRUE(made.info().indexes.empty());
}

/// Runs work that was asked to stop before it began: it must look before it is done.
void expect_stops(const char* name, const std::function<void()>& work) {
  const InterruptScope scope([] { return true; });
  std::this_thread::sleep_for(std::chrono::milliseconds(110));
  EXPECT_THROW(work(), Interrupted) << name;
}

TEST_F(InterruptTest, EveryLongCallOfAMemoryLooks) {
  const Matrix rows = unit_rows(500, 32);
  Memory made = memory(rows);
  const std::vector<std::string> keys{"1", "2"};
  RowInfo info;
  for (int i = 0; i < 500; ++i) info.keys.push_back("new " + std::to_string(i));
  made.remove(std::span(keys).first(1));
  expect_stops("add", [&] { made.add(rows, rows, info); });
  expect_stops("upsert", [&] { made.upsert(rows, rows, info); });
  expect_stops("remove", [&] { made.remove(std::span(keys).last(1)); });
  expect_stops("compact", [&] { made.compact(); });
  expect_stops("search", [&] { made.search(rows.topRows(1)); });
  expect_stops("search by keys", [&] { made.search(rows.topRows(1), {.only_keys = keys}); });
  expect_stops("duplicates", [&] { made.duplicates(0.9F); });
  expect_stops("optimize", [&] { made.optimize({.index = "HNSW8"}); });
  expect_stops("verify", [&] { made.verify(); });
  expect_stops("embeddings", [&] { made.embeddings(made.rows(), Modality::text); });
  expect_stops("keys", [&] { made.keys(made.rows()); });
  EXPECT_EQ(made.size(), 499);
  made.optimize({.index = "HNSW8"});
  expect_stops("search by graph", [&] { made.search(rows.topRows(1)); });
  made.optimize({.index = "IVF8,PQ8"});
  expect_stops("search by FAISS", [&] { made.search(rows.topRows(1)); });
  made.close();
  expect_stops("repair", [&] { Memory::repair(folder_); });
  EXPECT_EQ(Memory::open(folder_).size(), 499);
  EXPECT_TRUE(Memory::open(folder_).verify().empty());
}

TEST_F(InterruptTest, EveryLongCallOfFusionTrainingAndEvaluationLooks) {
  const Matrix rows = unit_rows(64, 32);
  const Memory made = memory(rows);
  const FusionConfig shape{.method = "transformer", .dim = 32, .k = 4, .heads = 4};
  const Fusion fusion = Fusion::create(shape);
  const Neighbors found = made.search(rows, {.k = 4});
  std::vector<std::int64_t> own(64);
  std::iota(own.begin(), own.end(), 0);
  expect_stops("fuse", [&] { fusion.fuse(Modality::image, rows, found); });
  expect_stops("train",
               [&] { train({.images = rows, .texts = rows}, made, {.fusion = shape, .batch_size = 16, .epochs = 1}); });
  expect_stops("classify", [&] { classify(rows, rows, own); });
  expect_stops("retrieve", [&] { retrieve(rows, rows, own); });
  expect_stops("ranks", [&] { ranks(rows, rows, own); });
  expect_stops("bootstrap", [&] { bootstrap(std::vector<double>(64, 1.0)); });
  expect_stops("vote", [&] { vote(found, std::vector<std::int64_t>(256, 0), 1); });
  expect_stops("blend", [&] { blend(rows, rows, 1.0F); });
  expect_stops("average_prompts", [&] { average_prompts(rows, 2); });
}

TEST_F(InterruptTest, EveryLongCallOfAClipLooks) {
  const fs::path folder = fs::path(RECO_SOURCE_DIR) / "examples/icons/clip";
  const Clip clip = Clip::load(folder);
  const std::vector<Image> images(2, Image{64, 64, std::vector<std::uint8_t>(64 * 64 * 3)});
  const std::vector<std::string> texts(2, "a thing");
  expect_stops("encode_images", [&] { clip.encode_images(images); });
  expect_stops("encode_images that goes on", [&] {
    const auto source = [&](std::int64_t i) { return images[static_cast<std::size_t>(i)]; };
    clip.encode_images(2, source, {}, [](std::int64_t, const std::string&) { FAIL() << "no image is at fault"; });
  });
  expect_stops("encode_texts", [&] { clip.encode_texts(texts); });
  expect_stops("tokenizer", [&] { clip.tokenizer().encode(texts); });
}

}  // namespace
}  // namespace reco
