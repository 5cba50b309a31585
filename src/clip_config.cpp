// SPDX-License-Identifier: Apache-2.0
#include "clip_config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "io/file.h"
#include "reco/error.h"

namespace reco {

namespace {

using nlohmann::json;
using Shapes = std::map<std::string, std::vector<std::int64_t>>;

constexpr const char* kLoad = "clip.load";
constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

const std::map<std::string, Activation>& activations() {
  static const std::map<std::string, Activation> names{{"quick_gelu", Activation::quick_gelu},
                                                       {"gelu", Activation::gelu},
                                                       {"gelu_python", Activation::gelu},
                                                       {"gelu_new", Activation::gelu_tanh},
                                                       {"gelu_fast", Activation::gelu_tanh},
                                                       {"gelu_accurate", Activation::gelu_tanh},
                                                       {"gelu_pytorch_tanh", Activation::gelu_tanh},
                                                       {"gelu_python_tanh", Activation::gelu_tanh},
                                                       {"silu", Activation::silu},
                                                       {"swish", Activation::silu},
                                                       {"relu", Activation::relu}};
  return names;
}

/// A JSON object with the path to it, for messages such as "config.json: text_config.hidden_size must be ...".
class Section {
 public:
  Section(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    check(object.is_object(), kLoad, where_, " must be a JSON object, got ", object.type_name());
  }

  /// Reads keys that are there and not null; others keep what they hold.
  void integer(const char* key, std::int64_t& value, std::int64_t low, std::int64_t high) const {
    if (const json* found = find(key)) {
      const bool fits = found->is_number_integer() && *found >= low && *found <= high;
      check(fits, kLoad, where_, ".", key, " must be a whole number from ", low, " to ", high, ", got ", found->dump());
      value = found->get<std::int64_t>();
    }
  }

  void text(const char* key, std::string& value) const {
    if (const json* found = find(key)) {
      check(found->is_string(), kLoad, where_, ".", key, " must be a string, got ", found->dump());
      value = found->get<std::string>();
    }
  }

  void epsilon(const char* key, double& value) const {
    if (const json* found = find(key)) {
      const bool fits = found->is_number() && *found >= 0.0 && *found <= 1.0;
      check(fits, kLoad, where_, ".", key, " must be a number from 0 to 1, got ", found->dump());
      value = found->get<double>();
    }
  }

  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
};

/// Old folders hold text_config_dict beside text_config, and it wins, its defaults too.
Section tower_section(const Section& root, const std::string& key) {
  static const json empty = json::object();
  for (const std::string& name : {key + "_dict", key}) {
    if (const json* found = root.find(name.c_str())) return {*found, root.where() + ": " + name};
  }
  return {empty, root.where() + ": " + key};
}

void read_tower(const Section& section, const char* model_type, ClipTower& tower) {
  std::string type = model_type;
  section.text("model_type", type);
  check(type == model_type || type == "clip", kLoad, section.where(), ".model_type must be ", model_type, ", got '",
        type, "': only CLIP models with ViT towers are supported");
  section.integer("hidden_size", tower.hidden_size, 1, 1 << 16);
  section.integer("intermediate_size", tower.intermediate_size, 1, 1 << 18);
  section.integer("num_hidden_layers", tower.num_hidden_layers, 1, 1 << 10);
  section.integer("num_attention_heads", tower.num_attention_heads, 1, 1 << 10);
  section.text("hidden_act", tower.hidden_act);
  section.epsilon("layer_norm_eps", tower.layer_norm_eps);
  check(tower.hidden_size % tower.num_attention_heads == 0, kLoad, section.where(), ": hidden_size ", tower.hidden_size,
        " must be a multiple of num_attention_heads ", tower.num_attention_heads);
  check(activations().count(tower.hidden_act) > 0, kLoad, section.where(), ".hidden_act '", tower.hidden_act,
        "' is unknown; known are quick_gelu, gelu, gelu_new, gelu_fast, gelu_accurate, gelu_pytorch_tanh, silu, relu");
}

void read_text(const Section& section, ClipText& text) {
  text.hidden_size = 512, text.intermediate_size = 2048, text.num_attention_heads = 8;
  read_tower(section, "clip_text_model", text);
  section.integer("vocab_size", text.vocab_size, 1, 1 << 24);
  section.integer("max_position_embeddings", text.max_position_embeddings, 2, 1 << 16);
  section.integer("eos_token_id", text.eos_token_id, 0, 1 << 24);
}

void read_vision(const Section& section, ClipVision& vision) {
  vision.hidden_size = 768, vision.intermediate_size = 3072, vision.num_attention_heads = 12;
  read_tower(section, "clip_vision_model", vision);
  section.integer("image_size", vision.image_size, 1, 1 << 13);
  section.integer("patch_size", vision.patch_size, 1, 1 << 13);
  section.integer("num_channels", vision.num_channels, 1, 1 << 10);
  check(vision.num_channels == 3, kLoad, section.where(), ".num_channels must be 3, got ", vision.num_channels);
  check(vision.patch_size <= vision.image_size, kLoad, section.where(), ": patch_size ", vision.patch_size,
        " must not exceed image_size ", vision.image_size);
}

void check_architecture(const Section& root) {
  std::string type = "clip";
  root.text("model_type", type);
  check(type == "clip", kLoad, root.where(), ": the architecture '", type,
        "' is not supported; model_type must be 'clip'");
}

void add_norm(Shapes& shapes, const std::string& name, std::int64_t size) {
  shapes[name + ".weight"] = shapes[name + ".bias"] = {size};
}

void add_linear(Shapes& shapes, const std::string& name, std::int64_t in, std::int64_t out) {
  shapes[name + ".weight"] = {out, in};
  shapes[name + ".bias"] = {out};
}

void add_layers(Shapes& shapes, const std::string& model, const ClipTower& tower) {
  const std::int64_t width = tower.hidden_size;
  for (std::int64_t i = 0; i < tower.num_hidden_layers; ++i) {
    const std::string layer = model + ".encoder.layers." + std::to_string(i);
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      add_linear(shapes, layer + ".self_attn." + part, width, width);
    }
    add_norm(shapes, layer + ".layer_norm1", width);
    add_norm(shapes, layer + ".layer_norm2", width);
    add_linear(shapes, layer + ".mlp.fc1", width, tower.intermediate_size);
    add_linear(shapes, layer + ".mlp.fc2", tower.intermediate_size, width);
  }
}

json tower_json(const ClipTower& tower) {
  return {{"hidden_size", tower.hidden_size},
          {"intermediate_size", tower.intermediate_size},
          {"num_hidden_layers", tower.num_hidden_layers},
          {"num_attention_heads", tower.num_attention_heads},
          {"hidden_act", tower.hidden_act},
          {"layer_norm_eps", tower.layer_norm_eps}};
}

}  // namespace

Activation ClipTower::activation() const { return activations().at(hidden_act); }

ClipConfig ClipConfig::load(const std::filesystem::path& file) {
  const nlohmann::json content = read_json(file, kLoad);
  const Section root(content, file.string());
  check_architecture(root);
  ClipConfig config;
  root.integer("projection_dim", config.projection_dim, 1, 1 << 16);
  read_text(tower_section(root, "text_config"), config.text);
  read_vision(tower_section(root, "vision_config"), config.vision);
  return config;
}

std::map<std::string, std::vector<std::int64_t>> ClipConfig::tensors() const {
  Shapes shapes;
  const std::int64_t words = text.hidden_size, pixels = vision.hidden_size;
  shapes["text_model.embeddings.token_embedding.weight"] = {text.vocab_size, words};
  shapes["text_model.embeddings.position_embedding.weight"] = {text.max_position_embeddings, words};
  add_layers(shapes, "text_model", text);
  add_norm(shapes, "text_model.final_layer_norm", words);
  shapes["text_projection.weight"] = {projection_dim, words};

  shapes["vision_model.embeddings.class_embedding"] = {pixels};
  shapes["vision_model.embeddings.patch_embedding.weight"] = {pixels, vision.num_channels, vision.patch_size,
                                                              vision.patch_size};
  shapes["vision_model.embeddings.position_embedding.weight"] = {vision.grid() * vision.grid() + 1, pixels};
  add_norm(shapes, "vision_model.pre_layrnorm", pixels);  // sic: Hugging Face's spelling
  add_layers(shapes, "vision_model", vision);
  add_norm(shapes, "vision_model.post_layernorm", pixels);
  shapes["visual_projection.weight"] = {projection_dim, pixels};

  shapes["logit_scale"] = {};
  return shapes;
}

nlohmann::json ClipConfig::json() const {
  nlohmann::json words = tower_json(text), pixels = tower_json(vision);
  words["vocab_size"] = text.vocab_size;
  words["max_position_embeddings"] = text.max_position_embeddings;
  words["eos_token_id"] = text.eos_token_id;
  pixels["image_size"] = vision.image_size;
  pixels["patch_size"] = vision.patch_size;
  return {{"text_config", words}, {"vision_config", pixels}, {"projection_dim", projection_dim}};
}

nlohmann::json read_json(const std::filesystem::path& file, const char* tag) {
  const std::string text = io::read_file(file, kMaxConfigBytes);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail(tag, file.string(), " is no valid JSON: ", error.what());
  }
}

}  // namespace reco
