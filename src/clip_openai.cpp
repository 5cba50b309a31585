// SPDX-License-Identifier: Apache-2.0
// OpenAI's archives: they hold no configuration, it follows from the names and shapes of the tensors.
#include <cmath>
#include <set>

#include "clip_folder.h"
#include "reco/error.h"

namespace reco {

namespace {

using Tensors = std::map<std::string, io::TensorView>;

constexpr const char* kLoad = "clip.load";
constexpr std::int64_t kHead = 64;  // channels a head, in all of them

/// The size of one dimension of a tensor.
std::int64_t dimension(const ClipFiles& files, const std::string& name, std::size_t index) {
  const auto found = files.tensors.find(name);
  check(found != files.tensors.end() && index < found->second.shape.size(), kLoad, files.path.string(),
        ": there is no '", name, "': it is none of OpenAI's CLIP models");
  const std::int64_t size = found->second.shape[index];
  check(size > 0 && size < 1 << 24, kLoad, files.path.string(), ": '", name, "' has a dimension of ", size);
  return size;
}

/// How many different numbers follow the prefix.
std::int64_t count(const Tensors& tensors, const std::string& prefix) {
  std::set<std::string> numbers;
  for (auto at = tensors.lower_bound(prefix); at != tensors.end() && at->first.starts_with(prefix); ++at) {
    numbers.insert(at->first.substr(prefix.size(), at->first.find('.', prefix.size()) - prefix.size()));
  }
  return static_cast<std::int64_t>(numbers.size());
}

std::int64_t grid_of(std::int64_t positions) { return std::llround(std::sqrt(static_cast<double>(positions - 1))); }

void set_width(ClipTower& tower, std::int64_t width) {
  tower.hidden_size = width, tower.intermediate_size = 4 * width;
  tower.num_attention_heads = std::max<std::int64_t>(1, width / kHead);
}

ClipText guess_text(const ClipFiles& files) {
  ClipText text;
  set_width(text, dimension(files, "ln_final.weight", 0));
  text.num_hidden_layers = count(files.tensors, "transformer.resblocks.");
  text.max_position_embeddings = dimension(files, "positional_embedding", 0);
  text.vocab_size = dimension(files, "token_embedding.weight", 0);
  text.eos_token_id = 2, text.pooling = TextPooling::highest;
  return text;
}

ClipVision guess_vision(const ClipFiles& files) {
  ClipVision vision;
  if (files.tensors.count("visual.proj") > 0) {
    set_width(vision, dimension(files, "visual.conv1.weight", 0));
    vision.num_hidden_layers = count(files.tensors, "visual.transformer.resblocks.");
    vision.patch_size = dimension(files, "visual.conv1.weight", 3);
    vision.image_size = vision.patch_size * grid_of(dimension(files, "visual.positional_embedding", 0));
    return vision;
  }
  for (std::size_t i = 0; i < 4; ++i) {
    vision.stages[i] = count(files.tensors, "visual.layer" + std::to_string(i + 1) + '.');
  }
  vision.hidden_size = dimension(files, "visual.layer1.0.conv1.weight", 0);
  vision.num_attention_heads = std::max<std::int64_t>(1, vision.hidden_size * 32 / kHead);
  vision.patch_size = 32;
  vision.image_size = 32 * grid_of(dimension(files, "visual.attnpool.positional_embedding", 0));
  return vision;
}

ClipConfig guess_config(const ClipFiles& files) {
  ClipConfig config;
  config.text = guess_text(files);
  config.vision = guess_vision(files);
  config.projection_dim = dimension(files, "text_projection", 1);
  const std::string where = files.path.string();
  check_tower(config.text, where + ": text");
  if (!config.vision.is_resnet()) check_tower(config.vision, where + ": vision");
  check(config.text.num_hidden_layers > 0 && config.vision.num_hidden_layers > 0 && config.vision.image_size > 0 &&
            config.vision.image_size <= 1 << 13,
        kLoad, where, ": it is none of OpenAI's CLIP models");
  return config;
}

Preprocess preprocess_for(const ClipConfig& config) {
  Preprocess preprocess;
  preprocess.shortest_edge = preprocess.crop_width = preprocess.crop_height =
      static_cast<int>(config.vision.image_size);
  preprocess.torchvision_crop = true, preprocess.rgb_first = false;
  return preprocess;
}

}  // namespace

ClipFolder open_openai(const std::filesystem::path& file) {
  ClipFiles files = ClipFiles::open_archive(file);
  const ClipConfig config = guess_config(files);
  const ClipParts parts{ModelFormat::openai, config, preprocess_for(config), Tokenizer::load(file)};
  return ClipFolder(file, parts, std::move(files));
}

}  // namespace reco
