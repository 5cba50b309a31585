// SPDX-License-Identifier: Apache-2.0
// Which of the formats a model comes in: one rule for its configuration, image processor and tokenizer.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

namespace reco {

enum class ModelFormat { hugging_face, open_clip, openai };

inline constexpr const char* open_clip_file = "open_clip_config.json";

/// Of a folder: Hugging Face's, unless it has an open_clip_config.json and no weights, or no config.json, of Hugging
/// Face's. Of a file: open_clip_config.json means that format even where the folder serves both, and .pt is one of
/// OpenAI's archives. Throws Error where both configurations are there and config.json is malformed.
ModelFormat model_format(const std::filesystem::path& path);

/// Whether a config.json is Hugging Face's: it has a model_type, or towers. timm's, which lies in the same folder as
/// open_clip's files, has an `architecture` instead, and beside it the weights of one tower.
bool is_hugging_face_config(const nlohmann::json& config);

/// The folder in which the model's files lie.
inline std::filesystem::path model_folder(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) ? path : path.parent_path();
}

}  // namespace reco
