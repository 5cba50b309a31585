// SPDX-License-Identifier: Apache-2.0
#include "reco/memory_base.h"

#include <gtest/gtest.h>

#include "reco/error.h"
#include "reco/fusion.h"
#include "reco/memory.h"
#include "support.h"

namespace {

using reco::Matrix;
using reco::Modality;

/// A memory of another kind: asks a folder and counts the requests, as if each went over a network.
class Remote final : public reco::MemoryBase {
 public:
  explicit Remote(reco::Memory memory) : memory_(std::move(memory)) {}
  std::int64_t dim() const override { return memory_.dim(); }
  std::string encoder() const override { return memory_.encoder(); }
  std::int64_t size() const override { return memory_.size(); }
  reco::Neighbors search(const reco::MatrixView& queries, const reco::SearchOptions& options) const override {
    ++requests;
    return memory_.search(queries, options);
  }
  Matrix embeddings(std::span<const std::int64_t> rows, Modality side) const override {
    ++requests;
    return memory_.embeddings(rows, side);
  }
  std::vector<std::string> keys(std::span<const std::int64_t> rows) const override { return memory_.keys(rows); }
  std::vector<std::string> captions(std::span<const std::int64_t> rows) const override {
    return memory_.captions(rows);
  }
  std::vector<std::string> metadata(std::span<const std::int64_t> rows) const override {
    return memory_.metadata(rows);
  }
  reco::MemoryRow get(const std::string& key) const override { return memory_.get(key); }
  void add(const reco::MatrixView& images, const reco::MatrixView& texts, const reco::RowInfo& info) override {
    memory_.add(images, texts, info);
  }
  void remove(std::span<const std::string> keys) override { memory_.remove(keys); }

  mutable int requests = 0;

 private:
  reco::Memory memory_;
};

struct Case {
  const char* search;
  const char* fuse;
  int requests;
};

class AnyMemory : public testing::TestWithParam<Case> {};

}  // namespace

INSTANTIATE_TEST_SUITE_P(MemoryBase, AnyMemory,
                         testing::Values(Case{"uni-modal", "partner", 1}, Case{"uni-modal", "same", 2},
                                         Case{"uni-modal", "both", 3}, Case{"cross-modal", "partner", 2},
                                         Case{"cross-modal", "same", 1}, Case{"cross-modal", "both", 3}));

TEST_P(AnyMemory, GivesWhatItsFolderGivesInFewRequests) {
  const Folder folder;
  const auto memory = reco::Memory::create(folder / "m", 8);
  Remote remote(memory);
  const Matrix images = Matrix::Random(30, 8), texts = Matrix::Random(30, 8);
  std::vector<std::string> keys;
  for (int i = 0; i < 30; ++i) keys.push_back(std::to_string(i));
  remote.add(images, texts, {keys, {}, {}});
  EXPECT_EQ(memory.size(), 30);
  const reco::FusionConfig config{.dim = 8, .k = 4, .search = GetParam().search, .fuse = GetParam().fuse};
  for (const Modality side : {Modality::image, Modality::text}) {
    remote.requests = 0;
    const auto found = reco::find_neighbors(remote, config, images, {.k = 4, .modality = side});
    EXPECT_EQ(remote.requests, GetParam().requests);
    const auto expected = reco::find_neighbors(memory, config, images, {.k = 4, .modality = side});
    EXPECT_EQ(found.rows, expected.rows);
    EXPECT_EQ(found.partners, expected.partners);
    // What is fused of the best neighbour.
    const bool images_fused = (side == Modality::image) == (config.fuse == "same");
    const Matrix best =
        memory.embeddings(std::span(found.rows.data(), 1), images_fused ? Modality::image : Modality::text);
    EXPECT_EQ(found.partners.row(0), best.row(0));
  }
}
