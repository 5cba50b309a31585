// SPDX-License-Identifier: Apache-2.0
#include "fusion_metric.h"

#include <cmath>

namespace reco::fusion {

namespace {

// The number of each row's group.
at::Tensor numbers(std::span<const std::int64_t> groups) {
  const auto sizes =
      at::from_blob(const_cast<std::int64_t*>(groups.data()), {static_cast<std::int64_t>(groups.size())}, at::kLong);
  return at::repeat_interleave(sizes);
}

}  // namespace

at::Tensor mapped(const at::Tensor& metric, const at::Tensor& rows) {
  const auto out = at::linear(rows, metric);
  return out / out.norm(2, {-1}, true).clamp_min(1e-12);
}

at::Tensor compare(const at::Tensor& metric, const at::Tensor& queries, const at::Tensor& same) {
  return at::matmul(mapped(metric, same), mapped(metric, queries).unsqueeze(2)).squeeze(2);
}

at::Tensor scatter(const at::Tensor& rows, std::span<const std::int64_t> groups) {
  const auto x = rows.to(at::kDouble);
  const auto count = static_cast<std::int64_t>(groups.size());
  if (count == x.size(0)) {
    const auto apart = x - x.mean(0, true);
    return at::matmul(apart.t(), apart) / x.size(0);
  }
  const auto own = numbers(groups);
  const auto sizes = at::bincount(own, {}, count).unsqueeze(1).to(at::kDouble);
  const auto means = at::zeros({count, x.size(1)}, at::kDouble).index_add(0, own, x) / sizes.clamp_min(1);
  const auto apart = x - means.index_select(0, own);
  return at::matmul(apart.t(), apart) / (x.size(0) - count);
}

at::Tensor metric(const at::Tensor& scatter, double shrinkage) {
  const auto [values, vectors] = at::linalg_eigh(scatter);
  const auto positive = values.clamp_min(0);
  const auto map = (vectors * (positive + shrinkage * positive.mean() + 1e-12).rsqrt()).matmul(vectors.t());
  return (map * (std::sqrt(static_cast<double>(map.size(0))) / map.norm())).to(at::kFloat);
}

}  // namespace reco::fusion
