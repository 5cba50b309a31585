// SPDX-License-Identifier: Apache-2.0
// open_clip's configuration, and the names under which open_clip and OpenAI keep their tensors.
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "clip_folder.h"
#include "clip_json.h"
#include "clip_timm.h"

namespace reco {

namespace {

using nlohmann::json;

constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

/// Refuses what changes the model and does not run here.
void refuse(const ClipSection& section, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const json* found = section.find(key);
    const bool used = found != nullptr && *found != false && !(found->is_string() && *found == "default");
    check(!used, section.kTag, section.where(), ": the architecture with ", key, " = ",
          found == nullptr ? "" : io::brief(*found), " is not supported");
  }
}

/// A number, or two equal ones.
void square(const ClipSection& section, const char* key, std::int64_t& value) {
  const json* found = section.find(key);
  const bool pair = found != nullptr && found->is_array() && found->size() == 2 && found->at(0).is_number() &&
                    found->at(1).is_number() && found->at(0) == found->at(1);
  if (!pair) return section.integer(key, value, 1, 1 << 13);
  const json one{{key, found->at(0)}};
  ClipSection(one, section.where()).integer(key, value, 1, 1 << 13);
}

/// What both towers have. `width` is read; the rest depends on it.
void read_tower(const ClipSection& section, bool quick_gelu, ClipTower& tower) {
  refuse(section,
         {"block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"});
  double ratio = 4.0, scale = 0.0;
  section.integer("width", tower.hidden_size, 1, 1 << 16);
  section.integer("layers", tower.num_hidden_layers, 1, 1 << 10);
  section.number("mlp_ratio", ratio, 1e-3, 1e3);
  tower.intermediate_size = static_cast<std::int64_t>(static_cast<double>(tower.hidden_size) * ratio);
  tower.layer_scale = section.find("ls_init_value") != nullptr;
  section.number("ls_init_value", scale, -1e30, 1e30);
  std::string tanh;
  section.section("act_kwargs").text("approximate", tanh);
  check(tanh.empty() || tanh == "tanh" || tanh == "none", section.kTag, section.where(), ": act_kwargs.approximate '",
        tanh, "' is unknown");
  tower.hidden_act = quick_gelu ? "quick_gelu" : tanh == "tanh" ? "gelu_pytorch_tanh" : "gelu";
  section.section("norm_kwargs").number("eps", tower.layer_norm_eps, 0, 1);
}

void read_text(const ClipSection& section, bool quick_gelu, ClipText& text) {
  refuse(section, {"hf_model_name", "embed_cls"});
  text.hidden_size = 512, text.num_attention_heads = 8;
  read_tower(section, quick_gelu, text);
  section.integer("heads", text.num_attention_heads, 1, 1 << 10);
  section.integer("vocab_size", text.vocab_size, 1, 1 << 24);
  section.integer("context_length", text.max_position_embeddings, 2, 1 << 16);
  check_tower(text, section.where());
  bool bidirectional = false;
  section.flag("no_causal_mask", bidirectional);
  section.flag("proj_bias", text.projection_bias);
  text.causal = !bidirectional;
  std::string projection = "linear", pool = "argmax";
  section.text("proj_type", projection);
  check(projection == "linear", section.kTag, section.where(), ".proj_type must be 'linear', got '", projection, "'");
  section.text("pool_type", pool);
  text.eos_token_id = 2;
  section.integer("eos_id", text.eos_token_id, 0, 1 << 24);
  static const std::map<std::string, TextPooling> pools{{"argmax", TextPooling::highest},
                                                        {"eos", TextPooling::end_token},
                                                        {"first", TextPooling::first},
                                                        {"last", TextPooling::last}};
  check(pools.count(pool) > 0, section.kTag, section.where(), ".pool_type must be argmax, eos, first or last, got '",
        pool, "'");
  text.pooling = pools.at(pool);
}

void read_resnet(const ClipSection& section, ClipVision& vision) {
  const json& stages = *section.find("layers");
  check(stages.size() == 4, section.kTag, section.where(), ".layers must be four numbers of blocks, got ",
        stages.size());
  for (std::size_t i = 0; i < 4; ++i) {
    const json one{{"layers", stages[i].is_number() ? stages[i] : json("none")}};  // nested ones are not copied
    ClipSection(one, section.where()).integer("layers", vision.stages[i], 1, 1 << 10);
  }
  std::int64_t head = 64;
  vision.hidden_size = 768;
  section.integer("width", vision.hidden_size, 2, 1 << 11);
  section.integer("head_width", head, 1, 1 << 16);
  square(section, "image_size", vision.image_size);
  check(vision.hidden_size * 32 % head == 0 && vision.hidden_size % 2 == 0, section.kTag, section.where(), ": width ",
        vision.hidden_size, " and head_width ", head, " do not fit each other");
  check(vision.image_size % 32 == 0, section.kTag, section.where(), ".image_size must be a multiple of 32, got ",
        vision.image_size);
  vision.num_attention_heads = vision.hidden_size * 32 / head;
  vision.patch_size = 32;
}

void read_vit(const ClipSection& section, bool quick_gelu, ClipVision& vision) {
  refuse(section, {"attentional_pool"});
  vision.hidden_size = 768, vision.patch_size = 16;
  read_tower(section, quick_gelu, vision);
  std::int64_t head = 64;
  section.integer("head_width", head, 1, 1 << 16);
  vision.num_attention_heads = std::max<std::int64_t>(1, vision.hidden_size / head);
  check_tower(vision, section.where());
  square(section, "image_size", vision.image_size);
  square(section, "patch_size", vision.patch_size);
  check(vision.patch_size <= vision.image_size, section.kTag, section.where(), ": patch_size ", vision.patch_size,
        " must not exceed image_size ", vision.image_size);
  bool bare = false;
  section.flag("no_ln_pre", bare);
  vision.pre_norm = !bare;
  vision.norm_after_pooling = false;
  section.flag("final_ln_after_pool", vision.norm_after_pooling);
  std::string pool = "tok";
  section.text("pool_type", pool);
  check(pool == "tok" || pool == "avg", section.kTag, section.where(), ".pool_type must be tok or avg, got '", pool,
        "'");
  vision.pooling = pool == "avg" ? ImagePooling::mean : ImagePooling::class_token;
}

void read_vision(const ClipSection& section, bool quick_gelu, ClipVision& vision) {
  if (is_timm(section)) return read_timm(section, vision);
  const json* layers = section.find("layers");
  const bool resnet = layers != nullptr && layers->is_array();
  resnet ? read_resnet(section, vision) : read_vit(section, quick_gelu, vision);
}

// ---- names

using Pair = std::pair<std::string_view, std::string_view>;

/// Replaces a beginning by what stands for it; false if there is none of these.
bool rename(std::string& name, std::initializer_list<Pair> table) {
  for (const auto& [from, to] : table) {
    if (!name.starts_with(from)) continue;
    name = std::string(to) + name.substr(from.size());
    return true;
  }
  return false;
}

/// The part of a name behind the layer's number.
std::string layer_part(const std::string& part, ClipTensorName& where) {
  const std::string attention = "self_attn.";
  for (std::int64_t i = 0; i < 3; ++i) {
    const std::string projection = attention + "qkv"[i] + "_proj.";
    if (!part.starts_with(projection)) continue;
    where.part = i, where.parts = 3;
    return "attn.in_proj_" + part.substr(projection.size());
  }
  std::string renamed = part;
  rename(renamed, {{"self_attn.out_proj", "attn.out_proj"},
                   {"layer_norm1", "ln_1"},
                   {"layer_norm2", "ln_2"},
                   {"mlp.fc1", "mlp.c_fc"},
                   {"mlp.fc2", "mlp.c_proj"},
                   {"layer_scale1", "ls_1.gamma"},
                   {"layer_scale2", "ls_2.gamma"}});
  return renamed;
}

ClipTensorName layer_name(const std::string& tower, const std::string& rest) {
  ClipTensorName where;
  const std::size_t number = rest.find('.');
  where.name = tower + "transformer.resblocks." + rest.substr(0, number + 1);
  where.name += layer_part(rest.substr(number + 1), where);
  return where;
}

ClipTensorName open_clip_name(const std::string& name, const std::string& text, bool linear) {
  constexpr std::string_view words = "text_model.encoder.layers.", pixels = "vision_model.encoder.layers.";
  if (name.starts_with(words)) return layer_name(text, name.substr(words.size()));
  if (name.starts_with(pixels)) return layer_name("visual.", name.substr(pixels.size()));
  if (name == "visual_projection.weight") return {"visual.proj", 0, 1, true};
  if (name == "text_projection.weight" && !linear) return {text + "text_projection", 0, 1, true};
  std::string renamed = name;
  if (rename(renamed, {{"text_model.embeddings.token_embedding", "token_embedding"},
                       {"text_model.embeddings.position_embedding.weight", "positional_embedding"},
                       {"text_model.final_layer_norm", "ln_final"},
                       {"text_projection", "text_projection"}})) {
    return {text + renamed};
  }
  rename(renamed, {{"vision_model.embeddings.class_embedding", "visual.class_embedding"},
                   {"vision_model.embeddings.patch_embedding", "visual.conv1"},
                   {"vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"},
                   {"vision_model.pre_layrnorm", "visual.ln_pre"},
                   {"vision_model.post_layernorm", "visual.ln_post"}});
  return {renamed};
}

}  // namespace

ClipConfig read_open_clip_config(const std::filesystem::path& file) {
  const json content = io::read_json_object(file, ClipSection::kTag, kMaxConfigBytes);
  const ClipSection model = ClipSection(content, file.string()).section("model_cfg");
  check(model.find("embed_dim") != nullptr, model.kTag, model.where(), " must have embed_dim, vision_cfg and text_cfg");
  refuse(model, {"multimodal_cfg"});
  ClipConfig config;
  model.integer("embed_dim", config.projection_dim, 1, 1 << 16);
  config.logit_bias = model.find("init_logit_bias") != nullptr;
  bool quick_gelu = false;
  model.flag("quick_gelu", quick_gelu);
  const ClipSection vision = model.section("vision_cfg");
  read_vision(vision, quick_gelu, config.vision);
  read_text(model.section("text_cfg"), quick_gelu, config.text);
  check(config.vision.projection || config.projection_dim == config.vision.hidden_size, model.kTag, model.where(),
        ".embed_dim must be the image tower's ", config.vision.hidden_size, ", got ", config.projection_dim);
  return config;
}

ClipNames open_clip_names(const ClipFiles& files, const ClipConfig& config) {
  const std::string text = files.tensors.count("text.token_embedding.weight") > 0 ? "text." : "";
  const bool timm = config.vision.pooling == ImagePooling::attention;
  return [text, timm, linear = config.text.projection_bias](const std::string& name) {
    return timm && name.starts_with("vision_model.") ? timm_name(name) : open_clip_name(name, text, linear);
  };
}

}  // namespace reco
