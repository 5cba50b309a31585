// SPDX-License-Identifier: Apache-2.0
/// @file
/// CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021) and its kin,
/// SigLIP (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023) among them: the frozen dual encoder that
/// everything else builds on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/image.h"
#include "reco/tokenizer.h"
#include "reco/types.h"

namespace reco {

/// How to run a model.
struct ClipOptions {
  std::string device = "cpu";     ///< "cpu", "cuda" or "cuda:N"
  std::string dtype = "float32";  ///< "float32" or "bfloat16": the arithmetic of the towers; results are float32
  std::int64_t batch_size = 64;   ///< items that go through a tower at once, 1 to 65,536
};

/// The image of an index; called from several threads at once. What it throws, encode_images() throws.
using ImageSource = std::function<Image(std::int64_t index)>;

/// Is told which image cannot be read, and why. Called on the caller's thread only.
using Unreadable = std::function<void(std::int64_t index, const std::string& error)>;

/// A frozen CLIP model: two towers that put images and texts into one space, where similarity is the cosine.
///
/// Immutable after load(), cheap to copy (copies share the weights), thread safe: several threads may encode at once.
/// One call uses threads() threads. Embeddings are float32 rows of unit length whatever the dtype of the towers.
class RECO_API Clip {
 public:
  /// Opens a model in one of these formats, which its files tell, never its name:
  ///   - Hugging Face's CLIP and SigLIP folders: config.json, model.safetensors (or its sharded index, or
  ///     pytorch_model.bin), preprocessor_config.json or processor_config.json, and the tokenizer's files;
  ///   - open_clip's folders: open_clip_config.json, open_clip_model.safetensors (or open_clip_pytorch_model.bin) and,
  ///     unless the vocabulary is CLIP's, the tokenizer's files; image towers are ViT, ModifiedResNet, and timm's of
  ///     SigLIP, by timm_model_name. A folder that serves both is taken as Hugging Face's;
  ///     the path of its open_clip_config.json means open_clip. timm's config.json beside it (an `architecture`, no
  ///     model_type) is none of Hugging Face's;
  ///   - OpenAI's archives (.pt, TorchScript).
  /// Pickles are read as data: nothing in them is executed.
  /// Every key of a config is honoured, missing ones take the format's defaults; weights may be float32, float16 or
  /// bfloat16. Throws Error, naming file, tensor and shapes, when anything is missing or does not fit, and naming the
  /// architecture when it is one that does not run here.
  static Clip load(const std::filesystem::path& path, const ClipOptions& options = {});

  /// Embeds image files (JPEG, PNG, WebP): [n, dim] unit rows, in the order given. While one batch is encoded, the next
  /// is read. Throws Error naming the image that cannot be read, and when `progress`, which is told of images, stops
  /// it.
  Matrix encode_images(std::span<const std::filesystem::path> files, const Progress& progress = {}) const;
  /// The same of decoded images; errors name their place, from 0 on.
  Matrix encode_images(std::span<const Image> images, const Progress& progress = {}) const;
  /// The same of the bytes of image files; errors name their place, from 0 on.
  Matrix encode_images(std::span<const std::span<const std::byte>> files, const Progress& progress = {}) const;
  /// Images 0 to count - 1 of a source, which reads the next batch while one is encoded. With `unreadable`, an image
  /// whose source throws is no error: its row is NaN, and at the end `unreadable` is called for each of them, in order.
  Matrix encode_images(std::int64_t count, const ImageSource& source, const Progress& progress = {},
                       const Unreadable& unreadable = {}) const;

  /// Embeds texts (UTF-8): [n, dim] unit rows, in the order given. What is longer than context_length() tokens is cut
  /// and keeps its end token. Throws Error naming the text whose token the model does not have, and when `progress`,
  /// which is told of texts, stops it.
  Matrix encode_texts(std::span<const std::string> texts, const Progress& progress = {}) const;

  std::int64_t dim() const;                   ///< width of the shared space
  std::int64_t image_size() const;            ///< side of the input in pixels
  std::int64_t context_length() const;        ///< input tokens of the text tower
  std::int64_t parameters() const;            ///< number of weights
  float logit_scale() const;                  ///< exp(logit_scale): the factor on cosines before the softmax
  float logit_bias() const;                   ///< SigLIP's: is added before the sigmoid; 0 in CLIP
  const std::filesystem::path& path() const;  ///< where it was opened, absolute
  const ClipOptions& options() const;         ///< how it was opened
  const std::string& dtype() const;           ///< "float32" or "bfloat16"
  const std::string& device() const;          ///< as ClipOptions names it

  /// 64 hex digits: SHA-256 over the weights and all of the configuration, preprocessing and tokenizer that changes an
  /// embedding; not over the arithmetic's dtype, nor how the weights are spread over files. Two models with one
  /// fingerprint give the same embeddings; memories and fusions store it.
  const std::string& fingerprint() const;

  const Tokenizer& tokenizer() const;  ///< what encode_texts() splits texts with; lives as long as a copy of the model
  const Preprocess& preprocess() const;  ///< what encode_images() makes of an image; lives as long as a copy of it

  /// What was found, as a JSON object: architecture, sizes, activation, preprocessing, tokenizer, parameters,
  /// fingerprint.
  std::string info() const;

 private:
  struct Impl;
  explicit Clip(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace reco
