// SPDX-License-Identifier: Apache-2.0
// Opening a model, whatever format it comes in.
#pragma once

#include <filesystem>

#include "clip_config.h"
#include "clip_weights.h"
#include "model_format.h"
#include "reco/image.h"
#include "reco/tokenizer.h"

namespace reco {

struct ClipParts {
  ModelFormat format;
  ClipConfig config;
  Preprocess preprocess;
  Tokenizer tokenizer;
};

/// All of a model but the towers.
struct ClipFolder : ClipParts {
  /// Throws Error naming the file and what is missing, damaged, or does not fit.
  static ClipFolder open(const std::filesystem::path& path);

  /// Checks that the parts fit each other. `path` is for messages.
  ClipFolder(const std::filesystem::path& path, const ClipParts& parts, ClipFiles files);

  ClipWeights weights;
};

/// model_cfg of an open_clip_config.json. Throws Error naming the key; of an architecture that does not run here, too.
ClipConfig read_open_clip_config(const std::filesystem::path& file);

/// One of OpenAI's archives; a vocabulary may lie beside it. Throws Error naming what is missing or does not fit.
ClipFolder open_openai(const std::filesystem::path& file);

/// The names of open_clip and OpenAI; text towers lie at the top, or under `text.` in open_clip's custom_text models.
ClipNames open_clip_names(const ClipFiles& files, const ClipConfig& config);

}  // namespace reco
