// SPDX-License-Identifier: Apache-2.0
// Pickles (protocol 2) as PyTorch writes them, read as data: nothing is imported or called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace reco::io {

/// One object of a pickle. What is called in Python is a `call` of the global `text` here, an instance of a class an
/// `object`, and a reference to something outside the pickle a `reference`.
struct PickleNode {
  enum class Kind { none, boolean, integer, number, text, global, tuple, list, dict, object, call, reference, mark };
  Kind kind = Kind::none;
  std::int64_t integer = 0;              ///< of an integer or boolean
  std::string text;                      ///< of a text; "module name" of a global
  std::vector<const PickleNode*> items;  ///< of a tuple or list; a call's arguments
  /// Of a dict, an object or a call; those of another node stand as {nullptr, that node}.
  std::vector<std::pair<const PickleNode*, const PickleNode*>> members;
};

/// All objects of a pickle; they live as long as this.
class Pickle {
 public:
  /// `path` is for messages. Throws Error for a damaged pickle and for opcodes that PyTorch does not write.
  Pickle(std::span<const std::byte> bytes, const std::filesystem::path& path);
  const PickleNode& root() const { return *root_; }

 private:
  std::deque<PickleNode> nodes_;
  const PickleNode* root_ = nullptr;
};

}  // namespace reco::io
