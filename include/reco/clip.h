// SPDX-License-Identifier: Apache-2.0
// CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021): the frozen dual
// encoder that everything else builds on.
#pragma once

#include <cstdint>
#include <filesystem>
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
  std::int64_t batch_size = 64;   ///< items that go through a tower at once
};

/// A frozen CLIP model. Immutable after load(), cheap to copy (copies share the weights), thread safe.
class RECO_API Clip {
 public:
  /// Opens a Hugging Face folder: config.json, model.safetensors (or its sharded index), preprocessor_config.json and
  /// the tokenizer's files. Every key of the config is honoured, missing ones take Hugging Face's defaults; weights may
  /// be float32, float16 or bfloat16. Throws Error, naming file, tensor and shapes, when anything is missing or does
  /// not fit.
  static Clip load(const std::filesystem::path& folder, const ClipOptions& options = {});

  /// [n, dim] unit rows, in the order given. Throws Error naming the image that cannot be read.
  Matrix encode_images(std::span<const std::filesystem::path> files, const Progress& progress = {}) const;
  Matrix encode_images(std::span<const Image> images, const Progress& progress = {}) const;
  /// Encoded files held in memory (JPEG, PNG, WebP).
  Matrix encode_images(std::span<const std::span<const std::byte>> files, const Progress& progress = {}) const;

  /// [n, dim] unit rows. Longer texts than context_length() are cut and keep their end token.
  Matrix encode_texts(std::span<const std::string> texts, const Progress& progress = {}) const;

  std::int64_t dim() const;             ///< width of the shared space
  std::int64_t image_size() const;      ///< input pixels a side
  std::int64_t context_length() const;  ///< input tokens of the text tower
  std::int64_t parameters() const;      ///< number of weights
  float logit_scale() const;            ///< exp(logit_scale): the factor on cosines before the softmax
  const std::string& dtype() const;     ///< "float32" or "bfloat16"
  const std::string& device() const;

  /// 64 hex digits: SHA-256 over the weights and all of the configuration, preprocessing and tokenizer that changes an
  /// embedding; not over the arithmetic's dtype, nor how the weights are spread over files. Two models with one
  /// fingerprint give the same embeddings; memories and fusions store it.
  const std::string& fingerprint() const;

  const Tokenizer& tokenizer() const;
  const Preprocess& preprocess() const;

  /// What was found, as a JSON object: architecture, sizes, activation, preprocessing, tokenizer, parameters,
  /// fingerprint.
  std::string info() const;

 private:
  struct Impl;
  explicit Clip(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace reco
