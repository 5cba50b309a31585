// SPDX-License-Identifier: Apache-2.0
#include "memory_choice.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "memory_budget.h"
#include "reco/error.h"

namespace reco {

namespace {

/// Lists so that a search looks at about as many centroids as rows.
std::int64_t list_count(std::int64_t rows) {
  const auto root = static_cast<std::int64_t>(4 * std::sqrt(static_cast<double>(rows)));
  return std::clamp<std::int64_t>(root, 1, std::max<std::int64_t>(1, rows / 39));
}

/// What keeps no full rows in memory: 16 bytes a row are its number and room that a list grows into.
std::vector<std::string> coded(std::int64_t rows, std::int64_t dim, std::int64_t bytes) {
  const auto fits = [&](std::int64_t code) { return code > 0 && rows * (code + 16) <= bytes; };
  constexpr std::array<std::int64_t, 8> sizes{64, 56, 48, 32, 28, 24, 16, 8};
  std::vector<std::string> kinds;
  const auto size = std::find_if(sizes.begin(), sizes.end(), [&](auto s) { return dim % s == 0 && fits(s); });
  if (size != sizes.end()) kinds.push_back(",PQ" + std::to_string(*size));
  // A byte a number finds nearly what the rows themselves would, half a byte less.
  if (fits(dim)) {
    kinds.emplace_back(",SQ8");
  } else if (fits((dim + 1) / 2)) {
    kinds.emplace_back(",SQ4");
  }
  return kinds;
}

}  // namespace

ChoiceLimits& choice_limits() {
  static ChoiceLimits limits;
  return limits;
}

std::vector<std::string> index_choices(std::int64_t rows, const RowFormat& format, const OptimizeOptions& options) {
  if (options.index != "auto") return {options.index};
  if (rows < choice_limits().exact_rows) return {"exact"};
  if (!choice_limits().kinds.empty()) return choice_limits().kinds;
  const std::int64_t bytes = options.max_bytes > 0 ? options.max_bytes : default_budget();
  const std::string lists = "IVF" + std::to_string(list_count(rows));
  std::vector<std::string> kinds;
  const bool graph = rows <= choice_limits().graph_rows && rows * (format.bytes() + 32 * 9) <= bytes;
  if (graph) kinds.emplace_back("HNSW32");
  if (rows * (format.bytes() + 8) <= bytes) {
    kinds.push_back(lists + ",Flat");
  } else {
    for (const std::string& code : coded(rows, format.dim(), bytes)) kinds.push_back(lists + code);
  }
  check(!kinds.empty(), "memory.optimize", "no index over ", rows, " rows of dim ", format.dim(), " fits into ", bytes,
        " bytes: allow more");
  return kinds;
}

}  // namespace reco
