// SPDX-License-Identifier: Apache-2.0
#include "memory_kernel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "reco/types.h"

using reco::Matrix;

namespace {

Matrix random_rows(std::int64_t n, std::int64_t dim, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  return Matrix::NullaryExpr(n, dim, [&] { return normal(generator); });
}

/// The bits of a half-precision number by the definition, from double arithmetic.
double half_value(reco::Half half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

}  // namespace

TEST(MemoryKernel, WidensEveryFiniteHalf) {
  std::vector<reco::Half> halves;
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    if ((bits >> 10 & 31) != 31) halves.push_back(static_cast<reco::Half>(bits));
  }
  for (const auto* kernel : reco::memory_kernels()) {
    std::vector<float> floats(halves.size());
    kernel->widen(halves.data(), static_cast<std::int64_t>(halves.size()), floats.data());
    for (std::size_t i = 0; i < halves.size(); ++i) ASSERT_EQ(floats[i], half_value(halves[i])) << kernel->name;
  }
}

TEST(MemoryKernel, NarrowsToTheNearestEvenHalf) {
  std::vector<float> floats;
  for (unsigned bits = 0; bits < 0x3c00; ++bits) {  // every half up to 1, the middles between, and their neighbours
    const double low = half_value(static_cast<reco::Half>(bits)), high = half_value(static_cast<reco::Half>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    for (const float value :
         {static_cast<float>(low), middle, std::nextafter(middle, 0.0F), std::nextafter(middle, 2.0F)}) {
      floats.insert(floats.end(), {value, -value});
    }
  }
  for (const auto* kernel : reco::memory_kernels()) {
    std::vector<reco::Half> halves(floats.size());
    kernel->narrow(floats.data(), static_cast<std::int64_t>(floats.size()), halves.data());
    for (std::size_t i = 0; i < floats.size(); ++i) {
      const unsigned magnitude = halves[i] & 0x7fffU;
      const double error = std::abs(half_value(halves[i]) - floats[i]);
      for (const unsigned other : {magnitude - 1, magnitude + 1}) {
        if (other > 0x7bffU) continue;
        const double rival = std::abs(half_value(static_cast<reco::Half>(other | (halves[i] & 0x8000U))) - floats[i]);
        ASSERT_TRUE(error < rival || (error == rival && magnitude % 2 == 0)) << kernel->name << ' ' << floats[i];
      }
      ASSERT_EQ(std::signbit(floats[i]), (halves[i] & 0x8000) != 0);
    }
  }
}

TEST(MemoryKernel, ScoresDoNotDependOnWhatIsComputedBeside) {
  const std::int64_t dim = 96, n = 13, m = 21;
  const Matrix queries = random_rows(n, dim, 1), rows = random_rows(m, dim, 2);
  for (const auto* kernel : reco::memory_kernels()) {
    std::vector<reco::Half> halves(static_cast<std::size_t>(m * dim));
    kernel->narrow(rows.data(), m * dim, halves.data());
    Matrix widened(m, dim), together(n, 24);
    kernel->widen(halves.data(), m * dim, widened.data());
    kernel->scores(queries.data(), n, widened.data(), m, dim, together.data(), 24);
    for (std::int64_t i = 0; i < n; ++i) {
      std::vector<float> alone(24), single(8);
      std::vector<const std::byte*> rows;
      for (std::int64_t j = 0; j < m; ++j) rows.push_back(reinterpret_cast<const std::byte*>(halves.data() + j * dim));
      kernel->scores_of_one(queries.row(i).data(), rows.data(), m, dim, alone.data());
      for (std::int64_t j = 0; j < m; ++j) {
        ASSERT_EQ(alone[j], together(i, j)) << kernel->name;
        ASSERT_NEAR(alone[j], queries.row(i).dot(widened.row(j)), 1e-4) << kernel->name;
        kernel->scores(queries.row(i).data(), 1, widened.row(j).data(), 1, dim, single.data(), 4);
        ASSERT_EQ(single[0], together(i, j)) << kernel->name;
      }
    }
  }
}
