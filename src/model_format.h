// SPDX-License-Identifier: Apache-2.0
// Which of the formats a model comes in: one rule for its configuration, image processor and tokenizer.
#pragma once

#include <filesystem>

namespace reco {

enum class ModelFormat { hugging_face, open_clip, openai };

inline constexpr const char* open_clip_file = "open_clip_config.json";

/// Of a folder: Hugging Face's, unless it has no weights for it and an open_clip_config.json. Of a file:
/// open_clip_config.json means that format even where the folder serves both, and .pt is one of OpenAI's archives.
inline ModelFormat model_format(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (path.filename() == open_clip_file) return ModelFormat::open_clip;
  if (path.extension() == ".pt" && !fs::is_directory(path)) return ModelFormat::openai;
  for (const char* weights : {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"}) {
    if (fs::exists(path / "config.json") && fs::exists(path / weights)) return ModelFormat::hugging_face;
  }
  return fs::exists(path / open_clip_file) ? ModelFormat::open_clip : ModelFormat::hugging_face;
}

/// The folder in which the model's files lie.
inline std::filesystem::path model_folder(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) ? path : path.parent_path();
}

}  // namespace reco
