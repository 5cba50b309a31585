// SPDX-License-Identifier: Apache-2.0
#include "reco/fusion.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "reco/error.h"

namespace {

using reco::Matrix;

Matrix unit_rows(int n, int dim) {
  Matrix m = Matrix::Random(n, dim);
  m.rowwise().normalize();
  return m;
}

reco::Neighbors neighbors(int n, int k, int dim) {
  reco::Neighbors out{k, reco::IndexMatrix::Zero(n, k), Matrix::Constant(n, k, 0.5F), unit_rows(n * k, dim)};
  return out;
}

reco::FusionConfig small(const char* method) { return {.method = method, .dim = 16, .k = 4, .heads = 2}; }

std::filesystem::path file(const char* name) { return std::filesystem::path(testing::TempDir()) / name; }

TEST(Fusion, HasThePapersSize) {
  const auto fusion = reco::Fusion::create({.method = "transformer", .dim = 512, .k = 10});
  EXPECT_EQ(fusion.parameters(), 2 * 3'159'040);
}

TEST(Fusion, UntrainedGateStaysAtClip) {
  const auto queries = unit_rows(5, 16);
  const auto out = reco::Fusion::create(small("gated")).fuse(reco::Modality::image, queries, neighbors(5, 4, 16));
  EXPECT_LT((out.embeddings - queries).cwiseAbs().maxCoeff(), 1e-6F);
  EXPECT_EQ(out.gate.cwiseAbs().maxCoeff(), 0.0F);
}

TEST(Fusion, MeanIsWhatItSays) {
  const auto queries = unit_rows(3, 16);
  const auto found = neighbors(3, 4, 16);
  const auto fusion = reco::Fusion::mean(16, {.weight = 2.0F, .sharpness = 0.0F}, {});
  const auto out = fusion.fuse(reco::Modality::image, queries, found);
  for (int i = 0; i < 3; ++i) {
    Matrix want = queries.row(i) + 2.0F * found.partners.middleRows(i * 4, 4).colwise().mean();
    want.rowwise().normalize();
    EXPECT_LT((out.embeddings.row(i) - want).cwiseAbs().maxCoeff(), 1e-6F);
  }
}

TEST(Fusion, ManyRowsEqualFewAndStridesAreHonoured) {
  const auto fusion = reco::Fusion::create(small("transformer"), 7);
  const auto found = neighbors(2500, 4, 16);
  Matrix wide = Matrix::Random(2500, 20);
  const auto queries = wide.middleCols(2, 16);
  const auto all = fusion.fuse(reco::Modality::text, queries, found);
  reco::Neighbors last{4, found.rows.bottomRows(1), found.scores.bottomRows(1), found.partners.bottomRows(4)};
  const auto one = fusion.fuse(reco::Modality::text, queries.bottomRows(1), last);
  EXPECT_LT((all.embeddings.bottomRows(1) - one.embeddings).cwiseAbs().maxCoeff(), 1e-5F);
}

TEST(Fusion, ModesAreCheckedAndKept) {
  auto config = small("gated");
  config.search = "cross-modal";
  config.fuse = "both";
  config.shared = config.similarity = true;
  const auto path = file("fusion_modes.safetensors");
  reco::Fusion::create(config, 3).save(path);
  const auto again = reco::Fusion::load(path).config();
  EXPECT_EQ(again.search, "cross-modal");
  EXPECT_EQ(again.slots(), 8);
  EXPECT_TRUE(again.shared && again.similarity);
  config.sides = "left";
  EXPECT_THROW(reco::Fusion::create(config), reco::Error);
}

TEST(Fusion, SavesAndLoads) {
  const auto path = file("fusion_test.safetensors");
  const auto fusion = reco::Fusion::create(small("gated"), 3);
  fusion.save(path);
  const auto again = reco::Fusion::load(path);
  EXPECT_EQ(again.config().method, "gated");
  EXPECT_EQ(again.parameters(), fusion.parameters());
}

TEST(Fusion, DamagedFilesAreErrors) {
  const auto path = file("fusion_damaged.safetensors");
  reco::Fusion::create(small("gated"), 3).save(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  EXPECT_THROW(reco::Fusion::load(path), reco::Error);
  EXPECT_THROW(reco::Fusion::load(file("absent.safetensors")), reco::Error);
}

TEST(Fusion, WrongShapesAreErrors) {
  const auto fusion = reco::Fusion::create(small("transformer"));
  EXPECT_THROW(fusion.fuse(reco::Modality::image, unit_rows(2, 8), neighbors(2, 4, 8)), reco::Error);
  EXPECT_THROW(fusion.fuse(reco::Modality::image, unit_rows(2, 16), neighbors(3, 4, 16)), reco::Error);
  EXPECT_THROW(fusion.fuse(reco::Modality::image, unit_rows(2, 16), neighbors(2, 5, 16)), reco::Error);
  EXPECT_THROW(reco::Fusion::create({.method = "gated", .dim = 16, .heads = 3}), reco::Error);
}

}  // namespace
