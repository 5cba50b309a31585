// SPDX-License-Identifier: Apache-2.0
// Which index optimize() builds where it may choose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memory_rows.h"
#include "reco/memory.h"

namespace reco {

/// Where "auto" goes from one kind to the next. Tests put smaller ones in their place, while nobody optimises.
struct ChoiceLimits {
  std::int64_t exact_rows = 50'000;     ///< below this exact search takes a few milliseconds
  std::int64_t graph_rows = 4'000'000;  ///< above this linking a graph takes hours
  std::vector<std::string> kinds{};     ///< what there is from exact_rows on, where that is not to be chosen
};
ChoiceLimits& choice_limits();

/// The factory strings to try, the one that is likely to be fastest first: the next ones only where the recall is
/// missed or building needs too much. Just the one where options.index names it. Throws Error where none fits into
/// options.max_bytes.
std::vector<std::string> index_choices(std::int64_t rows, const RowFormat& format, const OptimizeOptions& options);

}  // namespace reco
