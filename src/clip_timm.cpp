// SPDX-License-Identifier: Apache-2.0
#include "clip_timm.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "reco/error.h"

namespace reco {

namespace {

/// What a part of a name stands for. Patches and side are numbers in the name: vit_base_patch16_siglip_224.
struct Size {
  const char* name;
  std::int64_t width, layers, heads, hidden;
};

constexpr std::array sizes{Size{"base", 768, 12, 12, 3072}, Size{"large", 1024, 24, 16, 4096},
                           Size{"so400m", 1152, 27, 16, 4304}, Size{"giantopt", 1536, 40, 16, 6144}};

/// The models, and whether their GELU is the approximation by tanh: it came with SigLIP 2, whose weights in the older
/// shapes run with the exact one in timm.
struct Model {
  const char* size;
  std::int64_t patch, side;
  bool tanh;
};

constexpr std::array models{
    Model{"base", 16, 224, false},    Model{"base", 16, 256, false},   Model{"base", 16, 384, false},
    Model{"base", 16, 512, false},    Model{"base", 32, 256, true},    Model{"large", 16, 256, false},
    Model{"large", 16, 384, false},   Model{"large", 16, 512, true},   Model{"so400m", 14, 224, false},
    Model{"so400m", 14, 378, false},  Model{"so400m", 14, 384, false}, Model{"so400m", 16, 256, true},
    Model{"so400m", 16, 384, true},   Model{"so400m", 16, 512, true},  Model{"giantopt", 16, 256, true},
    Model{"giantopt", 16, 384, true},
};

std::string name_of(const Model& model) {
  return std::string("vit_") + model.size + "_patch" + std::to_string(model.patch) + "_siglip_" +
         std::to_string(model.side);
}

const Model& find_model(const ClipSection& section) {
  std::string name;
  section.text("timm_model_name", name);
  for (const Model& model : models) {
    if (name == name_of(model)) return model;
  }
  fail(section.kTag, section.where(), ": the architecture with timm_model_name = \"", name, "\" is not supported");
}

/// The towers end with attention pooling, and nothing follows.
void check_head(const ClipSection& section) {
  std::string pool = "map", projection = "none";
  section.text("timm_pool", pool);
  section.text("timm_proj", projection);
  check(pool.empty() || pool == "map", section.kTag, section.where(), ".timm_pool must be 'map', got '", pool, "'");
  check(projection.empty() || projection == "none", section.kTag, section.where(), ".timm_proj must be 'none', got '",
        projection, "'");
}

}  // namespace

bool is_timm(const ClipSection& section) { return section.find("timm_model_name") != nullptr; }

void read_timm(const ClipSection& section, ClipVision& vision) {
  const Model& model = find_model(section);
  check_head(section);
  for (const Size& size : sizes) {
    if (std::string(size.name) != model.size) continue;
    vision.hidden_size = size.width, vision.intermediate_size = size.hidden;
    vision.num_hidden_layers = size.layers, vision.num_attention_heads = size.heads;
  }
  vision.hidden_act = model.tanh ? "gelu_pytorch_tanh" : "gelu", vision.layer_norm_eps = 1e-6;
  vision.patch_size = model.patch, vision.image_size = model.side;
  section.integer("image_size", vision.image_size, model.patch, 1 << 13);
  vision.class_token = vision.pre_norm = vision.projection = false;
  vision.patch_bias = true, vision.pooling = ImagePooling::attention;
}

namespace {

struct Part {
  std::string_view ours, timms;
};

constexpr std::array outer{Part{"embeddings.patch_embedding.", "patch_embed.proj."},
                           Part{"embeddings.position_embedding.weight", "pos_embed"},
                           Part{"post_layernorm.", "norm."},
                           Part{"head.probe", "attn_pool.latent"},
                           Part{"head.attention.out_proj.", "attn_pool.proj."},
                           Part{"head.layernorm.", "attn_pool.norm."},
                           Part{"head.mlp.", "attn_pool.mlp."}};
constexpr std::array inner{Part{"self_attn.out_proj.", "attn.proj."}, Part{"layer_norm1.", "norm1."},
                           Part{"layer_norm2.", "norm2."}};

template <std::size_t n>
std::string renamed(const std::string& name, const std::array<Part, n>& parts) {
  for (const auto& [ours, timms] : parts) {
    if (name.starts_with(ours)) return std::string(timms) + name.substr(ours.size());
  }
  return name;
}

ClipTensorName layer_name(const std::string& rest) {
  const std::size_t number = rest.find('.') + 1;
  const std::string layer = "visual.trunk.blocks." + rest.substr(0, number), part = rest.substr(number);
  for (std::int64_t i = 0; i < 3; ++i) {
    const std::string projection = std::string("self_attn.") + "qkv"[i] + "_proj.";
    if (part.starts_with(projection)) return {layer + "attn.qkv." + part.substr(projection.size()), i, 3};
  }
  return {layer + renamed(part, inner)};
}

}  // namespace

ClipTensorName timm_name(const std::string& name) {
  const std::string tower = "vision_model.", layers = "encoder.layers.", stacked = "head.attention.in_proj_";
  if (!name.starts_with(tower)) return {name};
  const std::string rest = name.substr(tower.size());
  if (rest.starts_with(layers)) return layer_name(rest.substr(layers.size()));
  if (rest.starts_with(stacked)) {  // the query apart from keys and values
    const std::string kind = rest.substr(stacked.size()), pool = "visual.trunk.attn_pool.";
    return {pool + "q." + kind, 0, 1, false, pool + "kv." + kind};
  }
  return {"visual.trunk." + renamed(rest, outer)};
}

}  // namespace reco
