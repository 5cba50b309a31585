// SPDX-License-Identifier: Apache-2.0
#include "memory_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "reco/types.h"
#include "support.h"

using reco::Matrix;
using reco::RowFormat;
using reco::Storage;

namespace {

Matrix random_rows(std::int64_t n, std::int64_t dim, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const Matrix rows = Matrix::NullaryExpr(n, dim, [&] { return normal(generator); });
  return rows.rowwise().normalized();
}

struct Case {
  Storage storage;
  std::int64_t dim;
};

class Rows : public testing::TestWithParam<Case> {
 protected:
  Rows() : format(GetParam().storage, GetParam().dim) {}

  std::vector<std::byte> encode(const Matrix& rows) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows.rows() * format.bytes()));
    for (Eigen::Index i = 0; i < rows.rows(); ++i) format.encode(rows.row(i).data(), &bytes[i * format.bytes()]);
    return bytes;
  }
  Matrix decode(const std::vector<std::byte>& bytes) const {
    Matrix rows(static_cast<std::int64_t>(bytes.size()) / format.bytes(), format.dim());
    for (Eigen::Index i = 0; i < rows.rows(); ++i) format.decode(&bytes[i * format.bytes()], rows.row(i).data());
    return rows;
  }

  RowFormat format;
};

}  // namespace

INSTANTIATE_TEST_SUITE_P(MemoryRows, Rows,
                         testing::Values(Case{Storage::float16, 33}, Case{Storage::float16, 512},
                                         Case{Storage::int8, 1}, Case{Storage::int8, 33}, Case{Storage::int8, 512},
                                         Case{Storage::codes4, 8}, Case{Storage::codes4, 768},
                                         Case{Storage::codes2, 24}, Case{Storage::codes2, 512},
                                         Case{Storage::codes1, 40}, Case{Storage::codes1, 640}),
                         [](const auto& info) {
                           return storage_name(info.param.storage) + std::string("_") + std::to_string(info.param.dim);
                         });

TEST_P(Rows, StayNearWhatTheyWere) {
  const std::int64_t dim = format.dim();
  Matrix rows = random_rows(50, dim, 1);
  rows.row(0).setZero();
  rows(0, dim / 2) = 1;  // all length in one number
  rows.row(1).setConstant(-1 / std::sqrt(static_cast<float>(dim)));
  const Matrix back = decode(encode(rows));
  const Eigen::VectorXf cosines = (rows.array() * back.array()).rowwise().sum();
  for (Eigen::Index i = 0; i < 50; ++i) {
    // What rounding to half precision moves a length by.
    ASSERT_NEAR(back.row(i).norm(), 1, format.storage() == Storage::float16 ? 1e-3 : 1e-5) << i;
  }
  // The distortion of Max's quantisers for normal numbers: the cosine is the root of what it leaves.
  const float expected = format.storage() == Storage::codes1   ? std::sqrt(1 - 0.3634F)
                         : format.storage() == Storage::codes2 ? std::sqrt(1 - 0.1175F)
                         : format.storage() == Storage::codes4 ? std::sqrt(1 - 0.009497F)
                                                               : 1.0F;
  if (dim >= 500 || !format.rotates()) {
    EXPECT_NEAR(cosines.tail(48).mean(), expected, 3e-3);
    EXPECT_GT(cosines.minCoeff(), expected - 0.03F);
  } else {
    EXPECT_GT(cosines.minCoeff(), 0.4F);
  }
}

TEST_P(Rows, ScoresAreThoseOfDecodedRowsWhateverIsComputedBeside) {
  const std::int64_t dim = format.dim(), n = 13, m = 21, width = format.width();
  const Matrix queries = random_rows(n, dim, 2);
  const auto bytes = encode(random_rows(m, dim, 3));
  const Matrix rows = decode(bytes);
  Matrix prepared(n, width), together(n, 24), work(m, width);
  for (Eigen::Index i = 0; i < n; ++i) format.prepare(queries.row(i).data(), prepared.row(i).data());
  std::vector<const std::byte*> pointers;
  for (std::int64_t j = 0; j < m; ++j) pointers.push_back(&bytes[j * format.bytes()]);
  format.scores(prepared.data(), n, pointers.data(), m, work.data(), together.data(), 24);
  for (Eigen::Index i = 0; i < n; ++i) {
    std::vector<float> alone(24), single(4);
    format.scores_of_one(prepared.row(i).data(), pointers.data(), m, alone.data());
    for (Eigen::Index j = 0; j < m; ++j) {
      ASSERT_EQ(alone[j], together(i, j));
      ASSERT_NEAR(alone[j], queries.row(i).dot(rows.row(j)), 2e-5);
      format.scores_of_one(prepared.row(i).data(), &pointers[j], 1, single.data());
      ASSERT_EQ(single[0], together(i, j));
    }
  }
}

TEST_P(Rows, HaveTheirSize) {
  const std::int64_t dim = format.dim();
  const std::map<Storage, std::int64_t> bits{
      {Storage::float16, 16}, {Storage::int8, 8}, {Storage::codes4, 4}, {Storage::codes2, 2}, {Storage::codes1, 1}};
  EXPECT_EQ(format.bytes() * 8, dim * bits.at(format.storage()));
}

TEST(MemoryRows, CodesNeedWholeBytes) {
  EXPECT_TRUE(has(error_of([] { RowFormat(Storage::codes1, 12); }), "multiple of 8, got 12"));
  EXPECT_TRUE(has(error_of([] { reco::parse_storage("int4"); }), "'int4'"));
  EXPECT_EQ(reco::parse_storage("codes2"), Storage::codes2);
}

TEST(MemoryRows, ADamagedRowWithoutLengthIsZero) {
  const RowFormat format(Storage::int8, 16);
  const std::vector<std::byte> row(16);
  Eigen::VectorXf out = Eigen::VectorXf::Ones(16);
  format.decode(row.data(), out.data());
  EXPECT_TRUE(out.isZero(0));
}
