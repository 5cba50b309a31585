// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>
#include <optional>
#include <set>

#include "reco/error.h"
#include "training_corruption.h"
#include "training_data.h"
#include "training_mean.h"

namespace {

using reco::Matrix;

constexpr int kConcepts = 60;
constexpr int kDim = 16;

Matrix near(const Matrix& x) {
  Matrix out = x + 0.1F * Matrix::Random(x.rows(), x.cols());
  out.rowwise().normalize();
  return out;
}

std::set<std::int64_t> rows_of(const reco::training::Concepts& concepts) {
  std::set<std::int64_t> out;
  for (std::size_t i = 0; i < concepts.size(); ++i) out.insert(concepts[i].begin(), concepts[i].end());
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

TEST_F(TrainingTest, WhatIsHeldOutByNameIsNeverLearnedFrom) {
  for (int i = 0; i < kConcepts; ++i) data_.concepts.push_back(i / 3);
  data_.held_out = {59, 0, 1, 2, 4, 4};  // all of concept 0, parts of 1 and 19
  config_.validation = 0.5;              // of no matter then
  const std::set<std::int64_t> held(data_.held_out.begin(), data_.held_out.end());
  const reco::training::Dataset dataset(data_, *memory_, config_, {});
  EXPECT_TRUE(dataset.given_validation());
  EXPECT_EQ(rows_of(dataset.validation()), held);
  EXPECT_EQ(dataset.validation().size(), 3U);
  EXPECT_EQ(dataset.train().size(), kConcepts / 3 - 1);
  EXPECT_EQ(rows_of(dataset.train()).size(), kConcepts - held.size());
  std::set<std::int64_t> seen;
  for (int epoch = 0; epoch < 20; ++epoch) {
    for (const auto& batch : dataset.epoch(1, epoch, 7)) seen.insert(batch.begin(), batch.end());
  }
  EXPECT_EQ(seen, rows_of(dataset.train()));
}

// What is found in closed form, too: the metric is that of the other rows.
TEST_F(TrainingTest, TheMetricIsNotThatOfWhatIsHeldOut) {
  for (int i = 0; i < kConcepts; ++i) data_.concepts.push_back(i / 3);
  config_.fusion.metric = true;
  const auto metric = [&] {
    reco::training::Dataset dataset(data_, *memory_, config_, {});
    reco::Parameters parameters;
    reco::training::learn_metric(config_, parameters, dataset);
    return parameters.at("image.metric");
  };
  data_.held_out = {4, 59};
  const auto before = metric();
  data_.images.row(4) = -data_.images.row(10);
  data_.images.row(59) = data_.images.row(11);
  EXPECT_TRUE(metric().equal(before));
  data_.held_out = {59};
  EXPECT_FALSE(metric().equal(before));
}

TEST_F(TrainingTest, WrongHeldOutRowsAreErrors) {
  const auto error = [&](std::vector<std::int64_t> rows) {
    data_.held_out = std::move(rows);
    try {
      reco::training::Dataset(data_, *memory_, config_, {});
    } catch (const reco::Error& found) {
      return std::string(found.what());
    }
    return std::string();
  };
  const auto all = [](int count) {
    std::vector<std::int64_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  };
  EXPECT_EQ(error({0, kConcepts}), "[training.train] held_out must be rows from 0 to 59");
  EXPECT_EQ(error({-1}), "[training.train] held_out must be rows from 0 to 59");
  EXPECT_EQ(error(all(kConcepts - 1)), "[training.train] expected pairs of two concepts or more, got 1");
  EXPECT_EQ(error(all(kConcepts - 2)), "");
  data_.images = near(Matrix::Random(4099, kDim));
  data_.texts = near(Matrix::Random(4099, kDim));
  EXPECT_EQ(error(all(4096)), "");
  EXPECT_EQ(error(all(4097)), "[training.train] held_out must have 4096 concepts at most, got 4097");
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

// With both sides of a neighbour fused, partners come first and same sides after, in the same order, as in a search.
TEST_F(TrainingTest, BothSidesOfADisturbedNeighbourBelongTogether) {
  config_.fusion.fuse = "both";
  config_.wrong_captions = config_.dropped = config_.random_k = 0;
  config_.random_rows = 1;
  const reco::training::Dataset dataset(data_, *memory_, config_, {});
  std::vector<std::int64_t> rows(kConcepts);
  std::iota(rows.begin(), rows.end(), 0);
  const auto pairs = dataset.rows(rows);
  const auto some = reco::training::disturb(config_, pairs, 3);
  const auto k = config_.fusion.k;
  const auto halves = [&](const at::Tensor& x) { return std::pair{x.narrow(1, 0, k), x.narrow(1, k, k)}; };
  for (const auto& whole : {some.image_truth, some.pairs.images.scores, some.pairs.images.mask.to(at::kFloat)}) {
    EXPECT_TRUE(halves(whole).first.equal(halves(whole).second));
  }
  EXPECT_TRUE(
      some.pairs.images.scores.narrow(1, 0, k - 1).ge(some.pairs.images.scores.narrow(1, 1, k - 1)).all().item<bool>());
  const auto [partners, same] = halves(some.pairs.images.partners);
  const auto [old_partners, old_same] = halves(pairs.images.partners);
  // A neighbour is one that was there, or another pair of the batch.
  const auto with = [&](const at::Tensor& old, const at::Tensor& batch) {
    return at::cat({old, batch.unsqueeze(0).expand({kConcepts, kConcepts, kDim})}, 1);
  };
  const auto place = at::cdist(same, with(old_same, pairs.images.queries)).argmin(2);
  const auto expected = with(old_partners, pairs.texts.queries).gather(1, place.unsqueeze(2).expand({-1, -1, kDim}));
  EXPECT_TRUE(expected.equal(partners));
  EXPECT_GT(place.ge(k).sum().item<int>(), kConcepts);  // some were replaced
}

// What a run takes of memory: neighbours lie in files, and are found there again.
TEST_F(TrainingTest, NeighboursFoundOnceServeLaterRuns) {
  config_.neighbors = folder_ / "neighbors";
  const reco::training::Dataset first(data_, *memory_, config_, {});
  const auto stop = [](auto, auto) { return false; };  // whoever searches is stopped
  const reco::training::Dataset second(data_, *memory_, config_, stop);
  const std::vector<std::int64_t> rows{5, 0, 59};
  EXPECT_TRUE(first.rows(rows).texts.partners.equal(second.rows(rows).texts.partners));
  config_.fusion.k = 2;
  const reco::training::Dataset fewer(data_, *memory_, config_, stop);
  EXPECT_TRUE(first.rows(rows).images.scores.narrow(1, 0, 2).equal(fewer.rows(rows).images.scores));
  config_.neighbors.clear();
  EXPECT_THROW(reco::training::Dataset(data_, *memory_, config_, stop), reco::Error);
}

TEST_F(TrainingTest, ADeviceThatIsNotThereIsAnError) {
  config_.device = "cuda:999";
  EXPECT_THROW(reco::train(data_, *memory_, config_), reco::Error);
  config_.device = "gpu";
  EXPECT_THROW(reco::validate(config_), reco::Error);
  config_.device = "cpu";
  config_.precision = "half";
  EXPECT_THROW(reco::validate(config_), reco::Error);
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
