// SPDX-License-Identifier: Apache-2.0
// What a Hugging Face folder says about its tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace reco {

/// A token that is found in the text itself, not made by merging.
struct AddedToken {
  std::string content;
  std::int64_t id = 0;
  bool normalized = false;  ///< found in the normalised text instead of the raw one
};

struct TokenizerFiles {
  std::unordered_map<std::string, std::int64_t> vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;  ///< best first; every part and every whole is a token
  std::vector<AddedToken> added;                            ///< each content once
  std::int64_t start = 0;
  std::int64_t end = 0;
  std::int64_t pad = 0;
  std::int64_t unknown = -1;  ///< -1: none
  std::int64_t size = 0;      ///< tokens of the vocabulary and added ones
};

/// Reads tokenizer.json, or vocab.json and merges.txt where it is missing, and, if there, tokenizer_config.json,
/// special_tokens_map.json and added_tokens.json, by the rules of Hugging Face's CLIPTokenizer. Throws Error naming the
/// file and what is wrong with it.
TokenizerFiles read_tokenizer_files(const std::filesystem::path& folder);

}  // namespace reco
