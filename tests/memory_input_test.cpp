// SPDX-License-Identifier: Apache-2.0
// What C++ programs hand over: Eigen's maps, blocks and expressions, however they lie in memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "memory_duplicates.h"
#include "reco/memory.h"
#include "support.h"

using reco::Matrix;
using reco::Memory;
using reco::Modality;

namespace {

constexpr Eigen::Index kRows = 5, kDim = 6;

Matrix expected_rows() {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  return Matrix::NullaryExpr(kRows, kDim, [&] { return normal(generator); });
}

/// What a memory holds of rows that `give` hands to it as both sides and as queries.
void expect_kept(const std::function<void(const std::function<void(const reco::MatrixView&)>&)>& give) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", kDim);
  give([&](const reco::MatrixView& rows) {
    memory.add(rows, rows, {.keys = {"a", "b", "c", "d", "e"}, .captions = {}, .metadata = {}});
    memory.upsert(rows.topRows(1), rows.topRows(1), {.keys = {"a"}, .captions = {"again"}, .metadata = {}});
    const auto found = memory.search(rows, {.k = 1});
    const auto keys = memory.keys({found.rows.data(), static_cast<std::size_t>(found.rows.size())});
    EXPECT_EQ(keys, (std::vector<std::string>{"a", "b", "c", "d", "e"}));
    EXPECT_EQ(memory.duplicates(rows, 0.99F).size(), 5);
  });
  const Matrix unit = expected_rows().rowwise().normalized();
  for (Eigen::Index i = 0; i < kRows; ++i) {
    const auto row = memory.get(std::string(1, static_cast<char>('a' + i)));
    EXPECT_LT((row.image_embedding.transpose() - unit.row(i)).cwiseAbs().maxCoeff(), 1e-3F) << i;
    EXPECT_LT((row.text_embedding.transpose() - unit.row(i)).cwiseAbs().maxCoeff(), 1e-3F) << i;
  }
}

}  // namespace

TEST(MemoryInput, TakesMapsOfWhateverStride) {
  const Matrix rows = expected_rows();
  std::vector<float> packed(rows.data(), rows.data() + rows.size());
  expect_kept([&](const auto& take) { take(Eigen::Map<const Matrix>(packed.data(), kRows, kDim)); });

  constexpr Eigen::Index wide = 11;  // other numbers lie between the rows
  std::vector<float> padded(kRows * wide, 1e30F);
  Eigen::Map<Matrix, 0, Eigen::OuterStride<>> outer(padded.data(), kRows, kDim, Eigen::OuterStride<>(wide));
  outer = rows;
  expect_kept([&](const auto& take) { take(outer); });

  std::vector<float> scattered(kRows * kDim * 3, 1e30F);
  Eigen::Map<Matrix, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> both(
      scattered.data(), kRows, kDim, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(kDim * 3, 3));
  both = rows;
  expect_kept([&](const auto& take) { take(both); });

  const Eigen::MatrixXf columns = rows;  // column after column
  expect_kept([&](const auto& take) { take(columns); });
  expect_kept([&](const auto& take) { take(Eigen::Map<const Eigen::MatrixXf>(columns.data(), kRows, kDim)); });
}

TEST(MemoryInput, TakesBlocksAndExpressions) {
  const Matrix rows = expected_rows();
  Matrix larger = Matrix::Constant(kRows + 2, kDim + 3, 7);
  larger.block(1, 2, kRows, kDim) = rows;
  expect_kept([&](const auto& take) { take(larger.block(1, 2, kRows, kDim)); });
  const Eigen::Ref<const Matrix> view(rows);
  expect_kept([&](const auto& take) { take(view); });
  expect_kept([&](const auto& take) { take(2 * rows); });
  expect_kept([&](const auto& take) { take(rows.cast<double>().cast<float>()); });
}

TEST(MemoryInput, AnswersBatchesOfAnySizeAlike) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", 16);
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  const Matrix rows = Matrix::NullaryExpr(20'000, 16, [&] { return normal(generator); });  // enough to be mapped
  reco::RowInfo info;
  for (Eigen::Index i = 0; i < rows.rows(); ++i) info.keys.push_back(std::to_string(i));
  memory.add(rows, -rows, info);
  const Matrix queries = Matrix::NullaryExpr(600, 16, [&] { return normal(generator); });
  const auto all = memory.search(queries, {.k = 3});
  for (const Eigen::Index n : {1, 2, 128, 129, 255, 256, 257}) {  // one group, two, and an odd rest
    const auto found = memory.search(queries.topRows(n), {.k = 3});
    EXPECT_EQ(found.rows, all.rows.topRows(n)) << n;
    EXPECT_EQ(found.scores, all.scores.topRows(n)) << n;
    EXPECT_EQ(found.partners, all.partners.topRows(3 * n)) << n;
  }
  const std::span shown(all.rows.data(), static_cast<std::size_t>(all.rows.size()));
  EXPECT_EQ(all.partners, memory.embeddings(shown, Modality::text));
}

TEST(MemoryInput, SaysWhereDuplicatesWereLeftOut) {
  const Folder folder;
  Memory memory = Memory::create(folder / "m", 4);
  reco::RowInfo info;
  for (int i = 0; i < 4'200; ++i) info.keys.push_back(std::to_string(i));
  Matrix same = Matrix::Ones(4'200, 4);
  same.row(0) << 1, -1, 1, -1;
  memory.add(same, same, info);
  const auto cut = memory.duplicates(Matrix::Ones(1, 4), 0.99F);
  EXPECT_EQ(cut.size(), 4'096);
  EXPECT_TRUE(std::all_of(cut.begin(), cut.end(), [](const auto& pair) { return pair.more; }));
  const auto whole = memory.duplicates(same.topRows(1), 0.99F);
  ASSERT_EQ(whole.size(), 1);
  EXPECT_FALSE(whole[0].more);

  reco::Duplicates few(3);
  for (int round = 0; round < 2; ++round) {  // each pair is found from both sides
    for (const std::int64_t row : {4, 1, 3, 0, 2})
      few.add({row, row + 10, 1.0F - 0.1F * static_cast<float>(row), false});
  }
  const auto kept = std::move(few).best_first();
  ASSERT_EQ(kept.size(), 3);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(kept[i].row, static_cast<std::int64_t>(i));
    EXPECT_EQ(kept[i].more, i == 2);
  }
  reco::Duplicates enough(3);
  for (const std::int64_t row : {2, 0, 1, 2}) enough.add({row, row + 10, 0.5F, false});
  EXPECT_FALSE(std::move(enough).best_first().back().more);
}
