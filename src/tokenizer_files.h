// SPDX-License-Identifier: Apache-2.0
// What a model's files say about its tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tokenizer_clean.h"

namespace reco {

/// A token that is found in the text itself, not made by merging.
struct AddedToken {
  std::string content;
  std::int64_t id = 0;
  bool normalized = false;  ///< found in the normalised text instead of the raw one
};

/// A tokenizer that merges characters, not bytes, over the whole text, spaces as "\u2581" (Gemma's, which SigLIP 2
/// has).
struct CharacterFiles {
  bool lower_case = false;
  std::vector<std::int64_t> before, after;  ///< tokens put around every text
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
  Cleaning cleaning = Cleaning::none;
  std::optional<CharacterFiles> characters;
  /// open_clip's and OpenAI's own tokenizer: no added tokens, but these two names stand for start and end in a text.
  std::vector<std::u32string> simple;
};

/// Reads what Tokenizer::load() says, by the rules of Hugging Face's CLIPTokenizer or open_clip's SimpleTokenizer.
/// Throws Error naming the file and what is wrong with it.
TokenizerFiles read_tokenizer_files(const std::filesystem::path& path);

}  // namespace reco
