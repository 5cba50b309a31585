// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "reco/error.h"

namespace {

TEST(Evaluation, ClassifiesByCosine) {
  const reco::Matrix axes = reco::Matrix::Identity(8, 8);
  const std::vector<std::int64_t> labels{0, 1, 2, 3, 4, 5, 6, 0};
  const auto result = reco::classify(axes, axes, labels);
  EXPECT_DOUBLE_EQ(result.acc1, 7.0 / 8);
  EXPECT_DOUBLE_EQ(result.acc5, 1.0);  // class 0 is the first of the tied
  EXPECT_DOUBLE_EQ(result.mean_per_class_recall, (6 + 0.5) / 7);
}

TEST(Evaluation, AnImageHasSeveralTexts) {
  const reco::Matrix axes = reco::Matrix::Identity(3, 3);
  reco::Matrix texts(4, 3);
  texts << 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1;
  const std::vector<std::int64_t> image_of_text{0, 0, 1, 2};
  const auto result = reco::retrieve(axes, texts, image_of_text);
  EXPECT_DOUBLE_EQ(result.image_recall_at_1, 3.0 / 4);
  EXPECT_DOUBLE_EQ(result.text_recall_at_1, 2.0 / 3);  // image 2's text ties with the earlier text 1
  EXPECT_DOUBLE_EQ(result.text_recall_at_5, 1.0);
}

TEST(Evaluation, WrongInputIsAnError) {
  const reco::Matrix axes = reco::Matrix::Identity(3, 3);
  const std::vector<std::int64_t> labels{0, 1, 3};
  EXPECT_THROW(reco::classify(axes, axes, labels), reco::Error);
  EXPECT_THROW(reco::classify(axes, axes.leftCols(2), {labels.data(), 2}), reco::Error);
  const std::vector<std::string> names{"cat"}, bad{"a photo"};
  EXPECT_THROW(reco::prompts(names, bad), reco::Error);
}

TEST(Evaluation, ARankIsThatOfTheBestRightCandidate) {
  const reco::Matrix axes = reco::Matrix::Identity(4, 4);
  const std::vector<std::int64_t> targets{3, 1, 0}, queries{0, 0, 2};
  // Query 0 scores (1, 0, 0, 0): of its targets 3 and 1 the lower is the better. Queries 1 and 3 have none.
  EXPECT_EQ(reco::ranks(axes, axes, targets, queries), (std::vector<std::int64_t>{1, 4, 1, 4}));
  const std::vector<std::int64_t> own{0, 1, 2, 0};
  EXPECT_EQ(reco::ranks(axes, axes, own), (std::vector<std::int64_t>{0, 0, 0, 1}));
  EXPECT_THROW(reco::ranks(axes, axes, targets), reco::Error);
}

TEST(Evaluation, TheBootstrapFindsTheStandardError) {
  std::vector<double> values(2000);
  std::vector<std::int64_t> pairs(values.size()), groups(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = i % 4 < 2 ? 1.0 : 0.0;  // 1 1 0 0 1 1 0 0 ...: both of a pair are alike
    pairs[i] = static_cast<std::int64_t>(i / 2);
    groups[i] = i < 500 ? 0 : 1;
  }
  const reco::BootstrapOptions options{.resamples = 4000, .confidence = 0.95, .seed = 3};
  const auto width = [](reco::Interval interval) { return (interval.high - interval.low) / (2 * 1.96); };
  const auto single = reco::bootstrap(values, {}, {}, options);
  EXPECT_NEAR(width(single), 0.5 / std::sqrt(2000.0), 0.0006);
  EXPECT_NEAR((single.low + single.high) / 2, 0.5, 0.003);
  // Half as many independent units: wider by the square root of two.
  EXPECT_NEAR(width(reco::bootstrap(values, pairs, {}, options)), 0.5 / std::sqrt(1000.0), 0.0009);
  // The mean of two groups' means: the standard errors of 500 and 1500 values, halved and added.
  EXPECT_NEAR(width(reco::bootstrap(values, {}, groups, options)), 0.25 * std::sqrt(1 / 500.0 + 1 / 1500.0), 0.0008);
  EXPECT_EQ(reco::bootstrap(values, {}, {}, options).low, single.low);
  EXPECT_THROW(reco::bootstrap({}, {}, {}, options), reco::Error);
  EXPECT_THROW(reco::bootstrap(values, {pairs.data(), 3}, {}, options), reco::Error);
  EXPECT_THROW(reco::bootstrap(values, {}, {}, {.confidence = 1.0}), reco::Error);
}

TEST(Evaluation, NeighboursVoteOnTheirLabels) {
  reco::Neighbors found{3, reco::IndexMatrix::Zero(1, 3), reco::Matrix::Constant(1, 3, 0.5F), {}};
  found.rows(0, 2) = -1;  // no third neighbour
  const std::vector<std::int64_t> labels{1, -1, 0};
  const auto votes = reco::vote(found, labels, 2);
  EXPECT_FLOAT_EQ(votes(0, 0), 0.0F);
  EXPECT_FLOAT_EQ(votes(0, 1), 0.5F);
  const reco::Matrix cosines = reco::Matrix::Constant(1, 2, 0.1F);
  EXPECT_FLOAT_EQ(reco::blend(cosines, votes, 100.0F, 0.5F)(0, 1), 0.5F);
  EXPECT_THROW(reco::vote(found, labels, 1), reco::Error);
  EXPECT_THROW(reco::blend(cosines, votes, 100.0F, 2.0F), reco::Error);
}

}  // namespace
