// SPDX-License-Identifier: Apache-2.0
// Checks and conversions of what callers give to a memory.
#pragma once

#include <cstdint>
#include <vector>

#include "memory_rows.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

/// Throws Error unless there is one key a row, none twice, none empty but where that is allowed, and captions and
/// metadata fit: one a row or none at all, text in UTF-8, metadata JSON objects.
void check_info(const RowInfo& info, std::int64_t rows, const char* tag, bool empty_keys = false);

/// One over the length of each row. Throws Error, with `name`, for rows that are zero or not finite.
std::vector<double> inverse_norms(const MatrixView& rows, const char* tag, const char* name);

/// Rows scaled to unit length.
Matrix unit_rows(const MatrixView& rows, const std::vector<double>& inverse_norms);

/// The same for `count` rows from `first` on, as they lie in a shard.
std::vector<std::byte> encoded_rows(const RowFormat& format, const MatrixView& rows,
                                    const std::vector<double>& inverse_norms, std::int64_t first, std::int64_t count);

}  // namespace reco
