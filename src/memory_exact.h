// SPDX-License-Identifier: Apache-2.0
// For memories that keep their pairs elsewhere and compute in another order: what a folder of float16 would hold, and
// the similarities that it would find, bit for bit.
#pragma once

#include "reco/export.h"
#include "reco/types.h"

namespace reco {

/// Rows of unit length, as queries are compared. Throws Error, with `tag` and `name`, for rows that are zero or not
/// finite.
RECO_API Matrix exact_unit_rows(const MatrixView& rows, const char* tag, const char* name);

/// The similarities of a unit query, [1, dim], and rows that half precision holds, [m, dim].
RECO_API Eigen::VectorXf exact_scores(const MatrixView& query, const MatrixView& rows);

}  // namespace reco
