// SPDX-License-Identifier: Apache-2.0
#include "clip_config.h"

#include <nlohmann/json.hpp>

#include "reco/error.h"

namespace reco {

namespace {

using nlohmann::json;
using Shapes = std::map<std::string, std::vector<std::int64_t>>;

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

void add_norm(Shapes& shapes, const std::string& name, std::int64_t size) {
  shapes[name + ".weight"] = shapes[name + ".bias"] = {size};
}

void add_linear(Shapes& shapes, const std::string& name, std::int64_t in, std::int64_t out) {
  shapes[name + ".weight"] = {out, in};
  shapes[name + ".bias"] = {out};
}

void add_mlp(Shapes& shapes, const std::string& name, const ClipTower& tower) {
  add_linear(shapes, name + ".fc1", tower.hidden_size, tower.intermediate_size);
  add_linear(shapes, name + ".fc2", tower.intermediate_size, tower.hidden_size);
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
    add_mlp(shapes, layer + ".mlp", tower);
    if (tower.layer_scale) shapes[layer + ".layer_scale1"] = shapes[layer + ".layer_scale2"] = {width};
  }
}

/// SigLIP's names differ here: the text's projection is a layer of the text model, with a bias.
void add_text(Shapes& shapes, const ClipText& text, std::int64_t dim, bool siglip) {
  const std::int64_t width = text.hidden_size;
  shapes["text_model.embeddings.token_embedding.weight"] = {text.vocab_size, width};
  shapes["text_model.embeddings.position_embedding.weight"] = {text.max_position_embeddings, width};
  add_layers(shapes, "text_model", text);
  add_norm(shapes, "text_model.final_layer_norm", width);
  const std::string projection = siglip ? "text_model.head" : "text_projection";
  shapes[projection + ".weight"] = {dim, width};
  if (text.projection_bias) shapes[projection + ".bias"] = {dim};
}

void add_pooling(Shapes& shapes, const ClipVision& vision) {
  const std::int64_t width = vision.hidden_size;
  shapes["vision_model.head.probe"] = {1, 1, width};
  shapes["vision_model.head.attention.in_proj_weight"] = {3 * width, width};
  shapes["vision_model.head.attention.in_proj_bias"] = {3 * width};
  add_linear(shapes, "vision_model.head.attention.out_proj", width, width);
  add_norm(shapes, "vision_model.head.layernorm", width);
  add_mlp(shapes, "vision_model.head.mlp", vision);
}

void add_vit(Shapes& shapes, const ClipVision& vision, std::int64_t dim) {
  const std::int64_t width = vision.hidden_size, side = vision.patch_size;
  const std::string embeddings = "vision_model.embeddings.";
  if (vision.class_token) shapes[embeddings + "class_embedding"] = {width};
  shapes[embeddings + "patch_embedding.weight"] = {width, vision.num_channels, side, side};
  if (vision.patch_bias) shapes[embeddings + "patch_embedding.bias"] = {width};
  shapes[embeddings + "position_embedding.weight"] = {vision.grid() * vision.grid() + (vision.class_token ? 1 : 0),
                                                      width};
  if (vision.pre_norm) add_norm(shapes, "vision_model.pre_layrnorm", width);  // sic: Hugging Face's spelling
  add_layers(shapes, "vision_model", vision);
  add_norm(shapes, "vision_model.post_layernorm", width);
  if (vision.pooling == ImagePooling::attention) add_pooling(shapes, vision);
  if (vision.projection) shapes["visual_projection.weight"] = {dim, width};
}

void add_convolution(Shapes& shapes, const std::string& name, const std::string& norm, std::int64_t in,
                     std::int64_t out, std::int64_t side) {
  shapes[name + ".weight"] = {out, in, side, side};
  add_norm(shapes, norm, out);
  shapes[norm + ".running_mean"] = shapes[norm + ".running_var"] = {out};
}

/// Hugging Face has no such model: the names are those of OpenAI and open_clip.
void add_resnet(Shapes& shapes, const ClipVision& vision, std::int64_t dim) {
  const std::int64_t width = vision.hidden_size, out = 32 * width;
  add_convolution(shapes, "visual.conv1", "visual.bn1", 3, width / 2, 3);
  add_convolution(shapes, "visual.conv2", "visual.bn2", width / 2, width / 2, 3);
  add_convolution(shapes, "visual.conv3", "visual.bn3", width / 2, width, 3);
  std::int64_t in = width;
  for (std::size_t stage = 0; stage < 4; ++stage) {
    const std::int64_t planes = width << stage;
    for (std::int64_t i = 0; i < vision.stages[stage]; ++i) {
      const std::string block = "visual.layer" + std::to_string(stage + 1) + '.' + std::to_string(i);
      add_convolution(shapes, block + ".conv1", block + ".bn1", in, planes, 1);
      add_convolution(shapes, block + ".conv2", block + ".bn2", planes, planes, 3);
      add_convolution(shapes, block + ".conv3", block + ".bn3", planes, 4 * planes, 1);
      if (i == 0) add_convolution(shapes, block + ".downsample.0", block + ".downsample.1", in, 4 * planes, 1);
      in = 4 * planes;
    }
  }
  shapes["visual.attnpool.positional_embedding"] = {vision.grid() * vision.grid() + 1, out};
  for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
    add_linear(shapes, std::string("visual.attnpool.") + part, out, out);
  }
  add_linear(shapes, "visual.attnpool.c_proj", out, dim);
}

json tower_json(const ClipTower& tower) {
  json object{{"hidden_size", tower.hidden_size},
              {"intermediate_size", tower.intermediate_size},
              {"num_hidden_layers", tower.num_hidden_layers},
              {"num_attention_heads", tower.num_attention_heads},
              {"hidden_act", tower.hidden_act},
              {"layer_norm_eps", tower.layer_norm_eps}};
  if (tower.layer_scale) object["layer_scale"] = true;
  return object;
}

// What every CLIP model of Hugging Face has goes without saying: it was so when the first fingerprints were taken.
json text_json(const ClipText& text) {
  json object = tower_json(text);
  object["vocab_size"] = text.vocab_size;
  object["max_position_embeddings"] = text.max_position_embeddings;
  object["eos_token_id"] = text.eos_token_id;
  constexpr std::array pooling{"end_token", "highest", "first", "last"};
  const bool usual = text.pooling == (text.eos_token_id == 2 ? TextPooling::highest : TextPooling::end_token);
  if (!usual) object["pooling"] = pooling.at(static_cast<std::size_t>(text.pooling));
  if (!text.causal) object["causal"] = false;
  return object;
}

json resnet_json(const ClipVision& vision) {
  return {{"hidden_size", vision.hidden_size},
          {"num_attention_heads", vision.num_attention_heads},
          {"stages", vision.stages},
          {"hidden_act", "relu"},
          {"image_size", vision.image_size}};
}

json vision_json(const ClipVision& vision) {
  if (vision.is_resnet()) return resnet_json(vision);
  json object = tower_json(vision);
  object["image_size"] = vision.image_size;
  object["patch_size"] = vision.patch_size;
  constexpr std::array pooling{"class_token", "mean", "attention"};
  if (vision.pooling != ImagePooling::class_token)
    object["pooling"] = pooling.at(static_cast<std::size_t>(vision.pooling));
  if (vision.pooling == ImagePooling::mean) object["norm_after_pooling"] = vision.norm_after_pooling;
  if (!vision.pre_norm) object["pre_norm"] = false;
  return object;
}

}  // namespace

Activation ClipTower::activation() const { return activations().at(hidden_act); }

void check_tower(const ClipTower& tower, const std::string& where) {
  check(tower.hidden_size % tower.num_attention_heads == 0, "clip.load", where, ": hidden_size ", tower.hidden_size,
        " must be a multiple of num_attention_heads ", tower.num_attention_heads);
  check(activations().count(tower.hidden_act) > 0, "clip.load", where, ".hidden_act '", tower.hidden_act,
        "' is unknown; known are quick_gelu, gelu, gelu_new, gelu_fast, gelu_accurate, gelu_pytorch_tanh, silu, relu");
}

std::map<std::string, std::vector<std::int64_t>> ClipConfig::tensors() const {
  Shapes shapes;
  const bool siglip = architecture == "siglip";
  add_text(shapes, text, projection_dim, siglip);
  vision.is_resnet() ? add_resnet(shapes, vision, projection_dim) : add_vit(shapes, vision, projection_dim);
  shapes["logit_scale"] = {};
  if (logit_bias) shapes["logit_bias"] = {};
  return shapes;
}

nlohmann::json ClipConfig::json() const {
  nlohmann::json object{
      {"text_config", text_json(text)}, {"vision_config", vision_json(vision)}, {"projection_dim", projection_dim}};
  if (architecture != "clip") object["model_type"] = architecture;
  return object;
}

}  // namespace reco
