// SPDX-License-Identifier: Apache-2.0
// What a model is made of, whatever format it came in: the names are those of Hugging Face's config.json.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace reco {

enum class Activation { quick_gelu, gelu, gelu_tanh, silu, relu };

/// Which token of the image becomes its embedding: the class token, the mean of the patches, or what a learned query
/// gathers from them (SigLIP).
enum class ImagePooling { class_token, mean, attention };

/// Which token of the text becomes its embedding. `highest` is the first one with the highest id; the last token of the
/// context is a pad where the text is short.
enum class TextPooling { end_token, highest, first, last };

/// One transformer. Most members' names are config.json's keys, the defaults those of Hugging Face's CLIP.
struct ClipTower {
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 12;
  std::int64_t num_attention_heads = 0;
  std::string hidden_act = "quick_gelu";
  double layer_norm_eps = 1e-5;
  bool layer_scale = false;       ///< a learned factor on what each half of a layer adds (Touvron et al., 2021)
  Activation activation() const;  ///< of hidden_act
};

struct ClipText : ClipTower {
  std::int64_t vocab_size = 49408;
  std::int64_t max_position_embeddings = 77;
  /// The first position of this token is the text's embedding; 2 is what old models say and means the highest id
  /// instead.
  std::int64_t eos_token_id = 49407;
  TextPooling pooling = TextPooling::end_token;
  bool causal = true;  ///< tokens see themselves and those before
  bool projection_bias = false;
  /// Whether pads change the embedding, so that every text fills the context.
  bool padded() const { return !causal || pooling == TextPooling::last; }
};

struct ClipVision : ClipTower {
  std::int64_t image_size = 224;
  std::int64_t patch_size = 32;
  std::int64_t num_channels = 3;
  ImagePooling pooling = ImagePooling::class_token;
  bool class_token = true;
  bool pre_norm = true;            ///< a LayerNorm before the first layer
  bool norm_after_pooling = true;  ///< the last LayerNorm sees the mean, not each patch
  bool patch_bias = false;
  bool projection = true;
  /// Blocks of the four stages of a ModifiedResNet, all 0 for a ViT. Then hidden_size is the width of the first stage,
  /// num_attention_heads are the pooling's, and nothing else of ClipTower holds.
  std::array<std::int64_t, 4> stages{};
  bool is_resnet() const { return stages[0] > 0; }
  std::int64_t grid() const { return image_size / patch_size; }  ///< patches a side; pixels left over are not seen
};

struct ClipConfig {
  std::string architecture = "clip";  ///< "clip" or "siglip"
  ClipText text;
  ClipVision vision;
  std::int64_t projection_dim = 512;
  bool logit_bias = false;  ///< as a model trained with the sigmoid loss has

  /// Reads a Hugging Face config.json. Throws Error naming the file, the key and what it holds; for other architectures
  /// naming the architecture.
  static ClipConfig load(const std::filesystem::path& file);

  /// The name, as in Hugging Face's folders, and the shape of every tensor that such a model needs.
  std::map<std::string, std::vector<std::int64_t>> tensors() const;

  /// What decides about the embeddings, under config.json's names.
  nlohmann::json json() const;
};

/// Throws Error unless the sizes of a tower fit each other and its activation is known.
void check_tower(const ClipTower& tower, const std::string& where);

}  // namespace reco
