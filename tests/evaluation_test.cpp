// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include <gtest/gtest.h>

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

}  // namespace
