// SPDX-License-Identifier: Apache-2.0
// SigLIP's tokenizer: text in lower case without punctuation, split by a SentencePiece model (Kudo and Richardson,
// "SentencePiece: A simple and language independent subword tokenizer and detokenizer", 2018).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "token_finder.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace reco {

/// Ids as transformers' SiglipTokenizer gives them. Immutable, thread safe.
class PieceTokenizer {
 public:
  static bool is_in(const std::filesystem::path& folder);  ///< whether there is a spiece.model

  /// Reads spiece.model and, if there, tokenizer_config.json. Throws Error naming the file and what is wrong with it.
  explicit PieceTokenizer(const std::filesystem::path& folder);

  /// The ids and the end token, at most `max_length`: longer input is cut and keeps its end token.
  std::vector<std::int64_t> encode(std::string_view text, std::int64_t max_length) const;

  std::int64_t size() const;
  std::int64_t end_id() const { return end_; }
  std::int64_t pad_id() const { return pad_; }

 private:
  void add_special(const std::string& content, const std::filesystem::path& file);
  std::vector<int> pieces(const std::string& text) const;
  void encode_part(std::u32string_view part, std::vector<std::int64_t>& ids) const;

  std::shared_ptr<const sentencepiece::SentencePieceProcessor> model_;
  TokenFinder special_;
  std::string unknown_ = "<unk>";
  std::size_t unknown_pieces_ = 0;
  std::int64_t end_ = 0, pad_ = 0, space_ = 0;
  bool lower_case_ = true;
};

}  // namespace reco
