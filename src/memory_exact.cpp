// SPDX-License-Identifier: Apache-2.0
#include "memory_exact.h"

#include <algorithm>

#include "memory_input.h"
#include "memory_kernel.h"
#include "reco/error.h"

namespace reco {

Matrix exact_unit_rows(const MatrixView& rows, const char* tag, const char* name) {
  return unit_rows(rows, inverse_norms(rows, tag, name));
}

Eigen::VectorXf exact_scores(const MatrixView& query, const MatrixView& rows) {
  constexpr Eigen::Index tile = 4;  // that many are written at a time
  check(query.rows() == 1 && query.cols() == rows.cols(), "memory.search", "expected one query of ", rows.cols(),
        " columns, got ", query.rows(), " of ", query.cols());
  const MemoryKernel& kernel = memory_kernel();
  const Eigen::Index padded = kernel.padded(rows.cols());
  Matrix wide = Matrix::Zero(rows.rows() + 1, padded);  // the query comes last
  wide.topLeftCorner(rows.rows(), rows.cols()) = rows;
  wide.bottomLeftCorner(1, rows.cols()) = query;
  Eigen::VectorXf scores((rows.rows() + tile - 1) / tile * tile);
  kernel.scores(wide.row(rows.rows()).data(), 1, wide.data(), rows.rows(), padded, scores.data(), scores.size());
  return scores.head(rows.rows());
}

}  // namespace reco
