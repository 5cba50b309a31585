// SPDX-License-Identifier: Apache-2.0
// A fusion's own measure of how similar a query and its neighbours are: cosines after a linear map.
#pragma once

#include <ATen/ATen.h>

#include <span>

namespace reco::fusion {

/// Rows [..., d] after the map `metric` [d, d], scaled to unit length.
at::Tensor mapped(const at::Tensor& metric, const at::Tensor& rows);

/// Cosines of queries [n, d] and the same sides of their neighbours [n, k, d] after the map: [n, k].
at::Tensor compare(const at::Tensor& metric, const at::Tensor& queries, const at::Tensor& same);

/// The scatter S of rows [m, d] around the mean of their group, in float64; `groups` says how many rows each has, one
/// after the other. Where no group has two rows: around the mean of all. [d, d]
at::Tensor scatter(const at::Tensor& rows, std::span<const std::int64_t> groups);

/// (S + shrinkage * mean eigenvalue)^(-1/2), scaled to the Frobenius norm of the identity; float32. What varies among
/// rows of one group counts for little after it (Mahalanobis distance; whitening of linear discriminant analysis).
at::Tensor metric(const at::Tensor& scatter, double shrinkage);

}  // namespace reco::fusion
