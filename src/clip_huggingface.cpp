// SPDX-License-Identifier: Apache-2.0
// config.json of Hugging Face's CLIP and SigLIP folders.
#include <nlohmann/json.hpp>

#include "clip_config.h"
#include "clip_json.h"
#include "model_format.h"

namespace reco {

namespace {

constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

/// Old folders hold text_config_dict beside text_config, and it wins, its defaults too.
ClipSection tower_section(const ClipSection& root, const std::string& key) {
  return root.section(root.find((key + "_dict").c_str()) != nullptr ? key + "_dict" : key);
}

void read_tower(const ClipSection& section, const std::string& architecture, const std::string& part,
                ClipTower& tower) {
  const std::string expected = architecture + '_' + part + "_model";
  std::string type = expected;
  section.text("model_type", type);
  check(type == expected || type == architecture, section.kTag, section.where(), ".model_type must be ", expected,
        ", got '", type, "'");
  section.integer("hidden_size", tower.hidden_size, 1, 1 << 16);
  section.integer("intermediate_size", tower.intermediate_size, 1, 1 << 18);
  section.integer("num_hidden_layers", tower.num_hidden_layers, 1, 1 << 10);
  section.integer("num_attention_heads", tower.num_attention_heads, 1, 1 << 10);
  section.text("hidden_act", tower.hidden_act);
  section.number("layer_norm_eps", tower.layer_norm_eps, 0, 1);
  check_tower(tower, section.where());
}

void read_text(const ClipSection& section, const std::string& architecture, ClipText& text) {
  read_tower(section, architecture, "text", text);
  section.integer("vocab_size", text.vocab_size, 1, 1 << 24);
  section.integer("max_position_embeddings", text.max_position_embeddings, 2, 1 << 16);
}

void read_vision(const ClipSection& section, const std::string& architecture, ClipVision& vision) {
  read_tower(section, architecture, "vision", vision);
  section.integer("image_size", vision.image_size, 1, 1 << 13);
  section.integer("patch_size", vision.patch_size, 1, 1 << 13);
  section.integer("num_channels", vision.num_channels, 1, 1 << 10);
  check(vision.num_channels == 3, section.kTag, section.where(), ".num_channels must be 3, got ", vision.num_channels);
  check(vision.patch_size <= vision.image_size, section.kTag, section.where(), ": patch_size ", vision.patch_size,
        " must not exceed image_size ", vision.image_size);
}

ClipConfig read_clip(const ClipSection& root) {
  ClipConfig config;
  ClipText& text = config.text;
  text.hidden_size = 512, text.intermediate_size = 2048, text.num_attention_heads = 8;
  ClipVision& vision = config.vision;
  vision.hidden_size = 768, vision.intermediate_size = 3072, vision.num_attention_heads = 12;
  root.integer("projection_dim", config.projection_dim, 1, 1 << 16);
  const ClipSection words = tower_section(root, "text_config");
  read_text(words, "clip", text);
  words.integer("eos_token_id", text.eos_token_id, 0, 1 << 24);
  if (text.eos_token_id == 2) text.pooling = TextPooling::highest;
  read_vision(tower_section(root, "vision_config"), "clip", vision);
  return config;
}

ClipConfig read_siglip(const ClipSection& root) {
  ClipConfig config;
  config.architecture = "siglip";
  config.logit_bias = true;
  ClipText& text = config.text;
  ClipVision& vision = config.vision;
  for (ClipTower* tower : {static_cast<ClipTower*>(&text), static_cast<ClipTower*>(&vision)}) {
    tower->hidden_size = 768, tower->intermediate_size = 3072, tower->num_attention_heads = 12;
    tower->hidden_act = "gelu_pytorch_tanh", tower->layer_norm_eps = 1e-6;
  }
  text.vocab_size = 32000, text.max_position_embeddings = 64;
  text.causal = false, text.pooling = TextPooling::last, text.projection_bias = true;
  text.eos_token_id = 1;  // the tokenizer's; nothing is looked up by it
  vision.patch_size = 16;
  vision.class_token = vision.pre_norm = vision.projection = false;
  vision.patch_bias = true, vision.pooling = ImagePooling::attention;
  const ClipSection words = root.section("text_config"), pixels = root.section("vision_config");
  read_text(words, "siglip", text);
  read_vision(pixels, "siglip", vision);
  bool head = true;
  pixels.flag("vision_use_head", head);
  check(head, root.kTag, pixels.where(), ".vision_use_head must be true: without a head there is no image embedding");
  config.projection_dim = text.hidden_size;
  words.integer("projection_size", config.projection_dim, 1, 1 << 16);
  check(config.projection_dim == vision.hidden_size, root.kTag, root.where(), ": texts become ", config.projection_dim,
        " wide and images ", vision.hidden_size, ", which cannot be compared");
  return config;
}

}  // namespace

ClipConfig ClipConfig::load(const std::filesystem::path& file) {
  const nlohmann::json content = io::read_json_object(file, ClipSection::kTag, kMaxConfigBytes);
  const ClipSection root(content, file.string());
  std::string type = "clip", architecture;
  root.text("architecture", architecture);
  check(is_hugging_face_config(content), root.kTag, root.where(), " must have model_type 'clip' or 'siglip', got ",
        architecture.empty() ? "neither that nor towers" : "timm's architecture '" + architecture + "'");
  root.text("model_type", type);
  check(type == "clip" || type == "siglip", root.kTag, root.where(), ": the architecture '", type,
        "' is not supported; model_type must be 'clip' or 'siglip'");
  return type == "clip" ? read_clip(root) : read_siglip(root);
}

}  // namespace reco
