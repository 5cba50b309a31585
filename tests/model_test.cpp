// SPDX-License-Identifier: Apache-2.0
#include "reco/model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "reco/error.h"

namespace {

using reco::Matrix;

const std::filesystem::path kClip = std::filesystem::path(RECO_SOURCE_DIR) / "examples/icons/clip";

class ModelTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("reco_model_" + std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // A picture of one colour with a lighter corner.
  static reco::Image picture(std::uint8_t red, std::uint8_t blue) {
    reco::Image image{64, 64, std::vector<std::uint8_t>(3 * 64 * 64, 255)};
    for (int i = 0; i < 64 * 40; ++i) {
      image.pixels[3 * i] = red;
      image.pixels[3 * i + 2] = blue;
    }
    return image;
  }

  reco::Clip clip_ = reco::Clip::load(kClip);
  std::filesystem::path folder_;
};

TEST_F(ModelTest, OneAddTeachesAndOneRemoveForgets) {
  auto memory = reco::Memory::create(folder_, clip_.dim(), clip_.fingerprint());
  const reco::Model model(clip_, memory, reco::Fusion::mean(clip_.dim(), {4.0F, 10.0F}, {4.0F, 10.0F}));
  const std::vector<reco::Image> query{picture(200, 10)}, shown{picture(210, 20)};
  const std::vector<std::string> name{"a zorblatt"};
  const Matrix plain = model.encode_images(query);
  EXPECT_LT((plain - clip_.encode_images(query)).cwiseAbs().maxCoeff(), 1e-5F);
  memory.add(clip_.encode_images(shown), clip_.encode_texts(name), {{"one"}, {"a zorblatt"}, {}});
  const auto before = (plain * clip_.encode_texts(name).transpose())(0, 0);
  const auto after = (model.encode_images(query) * model.encode_texts(name).transpose())(0, 0);
  EXPECT_GT(after, before + 0.2F);
  const auto found = model.explain(reco::Modality::image, clip_.encode_images(query));
  EXPECT_EQ(found.keys, std::vector<std::string>{"one"});
  EXPECT_EQ(found.captions, name);
  EXPECT_NEAR(found.attention.at(0), 1.0F, 1e-6F);
  memory.remove(std::vector<std::string>{"one"});
  EXPECT_LT((model.encode_images(query) - plain).cwiseAbs().maxCoeff(), 1e-6F);
}

TEST_F(ModelTest, PartsOfOtherModelsAreRefused) {
  const auto other = reco::Memory::create(folder_, clip_.dim(), "another encoder");
  EXPECT_THROW(reco::Model(clip_, other, reco::Fusion::mean(clip_.dim(), {}, {})), reco::Error);
  const auto wide = reco::Memory::create(folder_ / "wide", clip_.dim() + 1);
  EXPECT_THROW(reco::Model(clip_, wide, reco::Fusion::mean(clip_.dim() + 1, {}, {})), reco::Error);
}

}  // namespace
