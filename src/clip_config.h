// SPDX-License-Identifier: Apache-2.0
// The config.json of a Hugging Face CLIP folder, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace reco {

enum class Activation { quick_gelu, gelu, gelu_tanh, silu, relu };

/// One transformer. The members' names are config.json's keys, the defaults those of Hugging Face.
struct ClipTower {
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 12;
  std::int64_t num_attention_heads = 0;
  std::string hidden_act = "quick_gelu";
  double layer_norm_eps = 1e-5;
  Activation activation() const;  ///< of hidden_act
};

struct ClipText : ClipTower {
  std::int64_t vocab_size = 49408;
  std::int64_t max_position_embeddings = 77;
  /// The first position of this token is the text's embedding; 2 is what old models say and means the highest id
  /// instead.
  std::int64_t eos_token_id = 49407;
};

struct ClipVision : ClipTower {
  std::int64_t image_size = 224;
  std::int64_t patch_size = 32;
  std::int64_t num_channels = 3;
  std::int64_t grid() const { return image_size / patch_size; }  ///< patches a side; pixels left over are not seen
};

struct ClipConfig {
  ClipText text;
  ClipVision vision;
  std::int64_t projection_dim = 512;

  /// Throws Error naming the file, the key and what it holds; for other architectures naming the architecture.
  static ClipConfig load(const std::filesystem::path& file);

  /// The name and shape of every tensor that such a model needs.
  std::map<std::string, std::vector<std::int64_t>> tensors() const;

  /// What decides about the embeddings, under config.json's names.
  nlohmann::json json() const;
};

/// Parses a JSON file. Throws Error naming it.
nlohmann::json read_json(const std::filesystem::path& file, const char* tag);

}  // namespace reco
