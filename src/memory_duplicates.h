// SPDX-License-Identifier: Apache-2.0
// Near-duplicates while they are looked for: as many as fit, whatever a memory holds thousands of times.
#pragma once

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>
#include <vector>

#include "reco/memory.h"

namespace reco {

/// Pairs in the making: the best are kept, each once.
class Duplicates {
 public:
  static constexpr std::size_t most_kept = 4'194'304;
  explicit Duplicates(std::size_t most = most_kept) : most_(most) {}
  void add(const Duplicate& pair) {
    found_.push_back(pair);
    if (found_.size() >= 2 * most_) sort_out();
  }
  /// Where pairs were left out, the last one says so.
  std::vector<Duplicate> best_first() && {
    sort_out();
    if (cut_ && !found_.empty()) found_.back().more = true;
    return std::move(found_);
  }

 private:
  void sort_out() {
    const auto order = [](const Duplicate& a, const Duplicate& b) {
      return std::tuple(-a.score, a.row, a.other, !a.more) < std::tuple(-b.score, b.row, b.other, !b.more);
    };
    std::sort(found_.begin(), found_.end(), order);
    const auto same = [](const Duplicate& a, const Duplicate& b) { return a.row == b.row && a.other == b.other; };
    found_.erase(std::unique(found_.begin(), found_.end(), same), found_.end());
    cut_ = cut_ || found_.size() > most_;
    if (found_.size() > most_) found_.resize(most_);
  }

  std::size_t most_;
  std::vector<Duplicate> found_;
  bool cut_ = false;
};

}  // namespace reco
