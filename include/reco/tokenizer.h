// SPDX-License-Identifier: Apache-2.0
/// @file
/// CLIP's byte-pair tokenizer (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016;
/// lower-cased byte-level variant of Radford et al., 2021), with ids identical to Hugging Face's CLIPTokenizer or to
/// open_clip's; and SigLIP's (SentencePiece: Kudo and Richardson, arXiv 1808.06226).
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
  /// Reads the tokenizer of a model, by the rules of its format (see Clip::load):
  ///   - of a Hugging Face folder tokenizer.json, or vocab.json and merges.txt where it is missing, and what
  ///     tokenizer_config.json, special_tokens_map.json and added_tokens.json say about special and added tokens;
  ///   - of an open_clip folder, or its open_clip_config.json, and of the folder in which one of OpenAI's archives
  ///     lies, bpe_simple_vocab_16e6.txt.gz, or the same vocabulary and merges, or else CLIP's own 49,408 tokens, which
  ///     the library carries as those projects' packages do; with the cleaning of those projects. Where
  ///     open_clip_config.json names a tokenizer of Hugging Face's, the folder must hold its files;
  ///   - of a SigLIP folder its SentencePiece model, spiece.model; of a SigLIP 2 folder its tokenizer.json, whose
  ///     merges join characters.
  /// Throws Error naming the file when one is missing or malformed.
  static Tokenizer load(const std::filesystem::path& path);

  /// The ids of `text` (UTF-8; invalid bytes become U+FFFD) between start and end token, at most `max_length` of them:
  /// longer input is cut and keeps its end token. Throws Error if max_length < 2.
  std::vector<std::int64_t> encode(std::string_view text, std::int64_t max_length = 77) const;

  /// encode() of each text, padded with the pad token to [n, max_length]. Uses threads() threads.
  IndexMatrix encode(std::span<const std::string> texts, std::int64_t max_length = 77) const;

  /// What happens to a text before it is split:
  ///   - "hugging face": normalisation form C, white space collapsed, lower case;
  ///   - "open_clip lower", which is OpenAI's too: the repairs of ftfy 6.3 (text decoded in a wrong encoding, quotes,
  ///     ligatures, widths, controls, ...), HTML's references resolved twice, white space collapsed, lower case;
  ///   - "open_clip whitespace": the same in the case given; "open_clip canonicalize": the same without punctuation;
  ///   - "siglip": lower case, ASCII punctuation taken away, white space collapsed, then the normalisation of the
  ///     SentencePiece model;
  ///   - "siglip2": none, or "siglip2 lower" where tokenizer.json or tokenizer_config.json ask for lower case.
  const std::string& cleaning() const;

  std::int64_t size() const;      ///< number of tokens in the vocabulary
  std::int64_t start_id() const;  ///< <|startoftext|>, 49406 in CLIP; -1 where there is none, as in SigLIP
  std::int64_t end_id() const;    ///< <|endoftext|>, 49407 in CLIP
  std::int64_t pad_id() const;    ///< what encode() pads with: as the folder says, by default <|endoftext|>

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace reco
