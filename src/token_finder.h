// SPDX-License-Identifier: Apache-2.0
// Tokens that are found in a text as they stand, before the rest of it is split.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace reco {

/// Finds added tokens: at each place the longest.
class TokenFinder {
 public:
  void add(std::u32string content, std::int64_t id) {
    if (content.empty()) return;
    starts_.push_back(content[0]);
    tokens_.push_back({std::move(content), id});
    const auto longer = [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); };
    std::stable_sort(tokens_.begin(), tokens_.end(), longer);
  }

  /// Calls between(text) and token(id) in turn until one returns false.
  template <typename Between, typename Token>
  bool split(std::u32string_view text, const Between& between, const Token& token) const {
    for (std::size_t at = text.find_first_of(starts_); at != text.npos; at = text.find_first_of(starts_, at)) {
      const auto match = std::find_if(tokens_.begin(), tokens_.end(),
                                      [&](const auto& entry) { return text.substr(at).starts_with(entry.first); });
      if (match == tokens_.end()) {
        ++at;
        continue;
      }
      if ((at > 0 && !between(text.substr(0, at))) || !token(match->second)) return false;
      text.remove_prefix(at + match->first.size());
      at = 0;
    }
    return text.empty() || between(text);
  }

 private:
  std::u32string starts_;
  std::vector<std::pair<std::u32string, std::int64_t>> tokens_;  // the longest first
};

}  // namespace reco
