// SPDX-License-Identifier: Apache-2.0
// CLIP's byte-pair tokenizer (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016;
// lower-cased byte-level variant of Radford et al., 2021), with ids identical to Hugging Face's CLIPTokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reco/export.h"
#include "reco/types.h"

namespace reco {

/// Turns texts into token ids. Immutable after load(), cheap to copy, thread safe.
class RECO_API Tokenizer {
 public:
  /// Reads tokenizer.json, or vocab.json and merges.txt where it is missing, from a Hugging Face folder, and what
  /// tokenizer_config.json, special_tokens_map.json and added_tokens.json say about special and added tokens.
  /// Throws Error naming the file when one is missing or malformed.
  static Tokenizer load(const std::filesystem::path& folder);

  /// The ids of `text` (UTF-8; invalid bytes become U+FFFD) between start and end token, at most `max_length` of them:
  /// longer input is cut and keeps its end token. Throws Error if max_length < 2.
  std::vector<std::int64_t> encode(std::string_view text, std::int64_t max_length = 77) const;

  /// encode() of each text, padded with the pad token to [n, max_length].
  IndexMatrix encode(std::span<const std::string> texts, std::int64_t max_length = 77) const;

  std::int64_t size() const;      ///< number of tokens in the vocabulary
  std::int64_t start_id() const;  ///< <|startoftext|>, 49406 in CLIP
  std::int64_t end_id() const;    ///< <|endoftext|>, 49407 in CLIP
  std::int64_t pad_id() const;    ///< what encode() pads with: as the folder says, by default <|endoftext|>

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace reco
