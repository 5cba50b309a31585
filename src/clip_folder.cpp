// SPDX-License-Identifier: Apache-2.0
#include "clip_folder.h"

#include <algorithm>
#include <utility>

#include "reco/error.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr const char* kLoad = "clip.load";

void check_preprocess(const Preprocess& preprocess, const ClipConfig& config, const fs::path& path) {
  const std::int64_t size = config.vision.image_size;
  const bool crop = preprocess.do_center_crop;
  if (!crop && (!preprocess.do_resize || preprocess.shortest_edge > 0)) return;  // the image decides
  const int width = crop ? preprocess.crop_width : preprocess.resize_width;
  const int height = crop ? preprocess.crop_height : preprocess.resize_height;
  check(width == size && height == size, kLoad, path.string(), ": the image processor ", crop ? "crops" : "resizes",
        " to ", width, " x ", height, ", but the model has image_size ", size);
}

void check_tokenizer(const Tokenizer& tokenizer, const ClipConfig& config, const fs::path& path) {
  const std::int64_t end = tokenizer.end_id(), eos = config.text.eos_token_id, size = config.text.vocab_size;
  check(config.text.pooling != TextPooling::end_token || eos == end, kLoad, path.string(),
        ": the model looks for the end token ", eos, ", but the tokenizer's is ", end);
  check(std::max({end, tokenizer.start_id(), tokenizer.pad_id()}) < size, kLoad, path.string(),
        ": the tokenizer's start, end and pad tokens are ", tokenizer.start_id(), ", ", end, " and ",
        tokenizer.pad_id(), ", but the model has a vocab_size of ", size);
}

ClipFolder open_hugging_face(const fs::path& folder) {
  const ClipConfig config = ClipConfig::load(folder / "config.json");
  const ClipParts parts{ModelFormat::hugging_face, config, Preprocess::load(folder), Tokenizer::load(folder)};
  return ClipFolder(folder, parts, ClipFiles::open(folder, "model", "pytorch_model.bin"));
}

ClipFolder open_open_clip(const fs::path& folder) {
  const fs::path file = folder / open_clip_file;
  const ClipConfig config = read_open_clip_config(file);
  const ClipParts parts{ModelFormat::open_clip, config, Preprocess::load(file), Tokenizer::load(file)};
  return ClipFolder(folder, parts, ClipFiles::open(folder, "open_clip_model", "open_clip_pytorch_model.bin"));
}

ClipNames names_of(const ClipParts& parts, const ClipFiles& files) {
  if (parts.format != ModelFormat::hugging_face) return open_clip_names(files, parts.config);
  return [](const std::string& name) { return ClipTensorName{name}; };
}

ClipWeights load_weights(const fs::path& path, const ClipParts& parts, ClipFiles files) {
  check_preprocess(parts.preprocess, parts.config, path);
  check_tokenizer(parts.tokenizer, parts.config, path);
  const ClipNames names = names_of(parts, files);
  return ClipWeights(std::move(files), parts.config.tensors(), names);
}

}  // namespace

ClipFolder::ClipFolder(const fs::path& path, const ClipParts& parts, ClipFiles files)
    : ClipParts(parts), weights(load_weights(path, parts, std::move(files))) {}

ClipFolder ClipFolder::open(const fs::path& path) {
  check(fs::exists(path), kLoad, path.string(), " does not exist");
  switch (model_format(path)) {
    case ModelFormat::open_clip:
      return open_open_clip(model_folder(path));
    case ModelFormat::openai:
      return open_openai(path);
    default:
      check(fs::is_directory(path), kLoad, path.string(), " is no folder, open_clip_config.json or .pt archive");
      return open_hugging_face(path);
  }
}

}  // namespace reco
