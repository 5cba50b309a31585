// SPDX-License-Identifier: Apache-2.0
// A byte-pair tokenizer's vocabulary and merges, in the formats in which they come.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tokenizer_files.h"

namespace reco {

/// A token's id. Throws Error unless `value` is one.
std::int64_t token_id(const nlohmann::json& value, const std::filesystem::path& file, const std::string& token);

/// Fills in vocabulary and merges from tokenizer.json, if it is given, or vocab.json and merges.txt.
void read_vocabulary(const std::filesystem::path& folder, const std::optional<nlohmann::json>& tokenizer,
                     TokenizerFiles& files);

/// The file that comes with CLIP's and open_clip's packages: a line of version and the merges, of which as many are
/// used as a vocabulary of 49,408 has room for. Tokens are numbered as they are made: bytes, bytes that end a word,
/// merges.
void read_simple_vocabulary(const std::filesystem::path& path, TokenizerFiles& files);

/// The same of the file that the library itself carries.
void read_own_vocabulary(TokenizerFiles& files);

}  // namespace reco
