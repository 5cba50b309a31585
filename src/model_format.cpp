// SPDX-License-Identifier: Apache-2.0
#include "model_format.h"

#include <algorithm>
#include <array>

#include "io/json.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t max_bytes = std::size_t{1} << 24;

bool has_hugging_face_weights(const fs::path& folder) {
  constexpr std::array names{"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"};
  return std::any_of(names.begin(), names.end(), [&](const char* name) { return fs::exists(folder / name); });
}

}  // namespace

bool is_hugging_face_config(const nlohmann::json& config) {
  constexpr std::array keys{"model_type", "text_config", "vision_config", "text_config_dict", "vision_config_dict"};
  return std::any_of(keys.begin(), keys.end(), [&](const char* key) { return !io::member(config, key).is_null(); });
}

ModelFormat model_format(const fs::path& path) {
  if (path.filename() == open_clip_file) return ModelFormat::open_clip;
  if (path.extension() == ".pt" && !fs::is_directory(path)) return ModelFormat::openai;
  if (!fs::exists(path / open_clip_file)) return ModelFormat::hugging_face;
  const fs::path config = path / "config.json";
  if (!fs::exists(config) || !has_hugging_face_weights(path)) return ModelFormat::open_clip;
  const bool own = is_hugging_face_config(io::read_json_object(config, "clip.load", max_bytes));
  return own ? ModelFormat::hugging_face : ModelFormat::open_clip;
}

}  // namespace reco
