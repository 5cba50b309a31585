// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <set>

#include "reco/error.h"
#include "training_corruption.h"
#include "training_data.h"

namespace {

using reco::Matrix;

constexpr int kConcepts = 60;
constexpr int kDim = 16;

Matrix near(const Matrix& x) {
  Matrix out = x + 0.1F * Matrix::Random(x.rows(), x.cols());
  out.rowwise().normalize();
  return out;
}

// Images and texts of a concept have nothing in common; the memory holds one pair of each.
class TrainingTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(testing::TempDir()) / std::string("reco_training_").append(std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
    const Matrix images = near(Matrix::Random(kConcepts, kDim)), texts = near(Matrix::Random(kConcepts, kDim));
    memory_.emplace(reco::Memory::create(folder_, kDim, "encoder"));
    reco::RowInfo info;
    for (int i = 0; i < kConcepts; ++i) info.keys.push_back(std::string("m").append(std::to_string(i)));
    memory_->add(near(images), near(texts), info);
    data_.images = near(images);
    data_.texts = near(texts);
    config_.fusion = {.method = "gated", .dim = kDim, .k = 3, .layers = 0, .heads = 1};
    config_.epochs = 10;
    config_.logit_scale = 20;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
  std::optional<reco::Memory> memory_;
  reco::TrainingData data_;
  reco::TrainingConfig config_;
};

TEST_F(TrainingTest, FusionCarriesTheEncoderAndLearns) {
  const auto fusion = reco::train(data_, *memory_, config_);
  EXPECT_EQ(fusion.encoder(), "encoder");
  const auto out = fusion.fuse(reco::Modality::image, data_.images, memory_->search(data_.images, {.k = 3}));
  const auto texts = fusion.fuse(reco::Modality::text, data_.texts,
                                 memory_->search(data_.texts, {.k = 3, .modality = reco::Modality::text}));
  const Matrix scores = out.embeddings * texts.embeddings.transpose();
  int right = 0;
  for (int i = 0; i < kConcepts; ++i) {
    Eigen::Index best = 0;
    scores.row(i).maxCoeff(&best);
    right += best == i;
  }
  EXPECT_GT(right, kConcepts * 8 / 10);
}

TEST_F(TrainingTest, ABatchNeverHoldsAConceptTwice) {
  for (int i = 0; i < kConcepts; ++i) data_.concepts.push_back(i / 3);
  config_.validation = 0.2;
  const reco::training::Dataset dataset(data_, *memory_, config_, {});
  EXPECT_EQ(dataset.train().size() + dataset.validation().size(), kConcepts / 3);
  EXPECT_EQ(dataset.validation().size(), kConcepts / 3 / 5);
  for (int epoch = 0; epoch < 5; ++epoch) {
    std::set<std::int64_t> seen;
    for (const auto& batch : dataset.epoch(1, epoch, 7)) {
      EXPECT_LE(batch.size(), 7U);
      for (const auto row : batch) EXPECT_TRUE(seen.insert(row / 3).second);
    }
    EXPECT_EQ(seen.size(), dataset.train().size());
  }
  EXPECT_EQ(dataset.epoch(1, 4, 7), dataset.epoch(1, 4, 7));
  EXPECT_NE(dataset.epoch(1, 4, 7), dataset.epoch(1, 5, 7));
}

TEST_F(TrainingTest, DisturbedNeighboursAreLabelled) {
  const reco::training::Dataset dataset(data_, *memory_, config_, {});
  std::vector<std::int64_t> rows(kConcepts);
  for (int i = 0; i < kConcepts; ++i) rows[i] = i;
  const auto pairs = dataset.rows(rows);
  const auto some = reco::training::disturb(config_, pairs, 3), again = reco::training::disturb(config_, pairs, 3);
  EXPECT_TRUE(some.pairs.images.partners.equal(again.pairs.images.partners));
  EXPECT_FALSE(some.image_truth.equal(reco::training::disturb(config_, pairs, 4).image_truth));
  for (const auto& [truth, mask] :
       {std::pair{some.image_truth, some.pairs.images.mask}, std::pair{some.text_truth, some.pairs.texts.mask}}) {
    const auto right = truth.sum(1);
    EXPECT_GT(right.eq(0).sum().item<int>(), 0);  // wholly wrong ones
    EXPECT_GT(right.eq(3).sum().item<int>(), 0);  // and clean ones
    EXPECT_TRUE(mask.any(1).all().item<bool>());
    EXPECT_EQ((truth * mask.logical_not()).sum().item<float>(), 0.0F);
  }
  // What is called true is what the memory said: with rows in their places, unless others came among them.
  config_.random_rows = 0;
  const auto kept = reco::training::disturb(config_, pairs, 3);
  const auto same = (kept.pairs.images.partners - pairs.images.partners).abs().amax(2).lt(1e-6);
  EXPECT_TRUE(same.logical_or(kept.image_truth.eq(0)).all().item<bool>());
  config_.wrong_captions = config_.dropped = config_.random_k = 0;
  EXPECT_TRUE(reco::training::disturb(config_, pairs, 3).image_truth.all().item<bool>());
}

TEST_F(TrainingTest, StopsWhenAsked) {
  EXPECT_THROW(reco::train(data_, *memory_, config_, [](auto, auto) { return false; }), reco::Error);
}

TEST_F(TrainingTest, WrongDataIsAnError) {
  config_.fusion.dim = 8;
  EXPECT_THROW(reco::train(data_, *memory_, config_), reco::Error);
  config_.fusion.dim = kDim;
  data_.keys = {"one"};
  EXPECT_THROW(reco::train(data_, *memory_, config_), reco::Error);
}

}  // namespace
