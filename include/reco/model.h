// SPDX-License-Identifier: Apache-2.0
// The whole: CLIP, what it can look up, and how the two are put together.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "reco/clip.h"
#include "reco/export.h"
#include "reco/fusion.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

struct ModelOptions {
  std::int64_t k = 10;                    ///< neighbours a query
  std::optional<float> max_similarity{};  ///< image neighbours more similar than this are left out
};

/// A refined embedding and where it came from. Lists have an entry a neighbour, best first: at most k.
struct Explanation {
  Modality modality = Modality::image;
  Matrix original{};                    ///< [1, dim] CLIP's embedding
  Matrix refined{};                     ///< [1, dim]
  std::vector<std::string> keys{};      ///< of the neighbours
  std::vector<std::string> captions{};  ///< as Memory::captions
  std::vector<std::string> metadata{};  ///< JSON objects, as Memory::metadata
  std::vector<float> scores{};          ///< cosines with the query
  std::vector<float> attention{};       ///< FusionOutput::attention; of both sides together with fuse = "both"
  float gate = 0.0F;                    ///< 0: stayed at CLIP
  float confidence = 0.0F;              ///< FusionOutput::confidence
};

/// A CLIP model that looks things up. Sees every change of the memory at once. Cheap to copy, thread safe.
class RECO_API Model {
 public:
  /// Throws Error when dimensions or encoder fingerprints of the three do not fit.
  Model(Clip clip, Memory memory, Fusion fusion, const ModelOptions& options = {});
  Model(Clip clip, std::shared_ptr<const MemoryBase> memory, Fusion fusion, const ModelOptions& options = {});

  /// Encodes and refines: [n, dim] unit rows.
  Matrix encode_images(std::span<const std::filesystem::path> files, const Progress& progress = {}) const;
  Matrix encode_images(std::span<const Image> images, const Progress& progress = {}) const;
  Matrix encode_texts(std::span<const std::string> texts, const Progress& progress = {}) const;

  /// Refines embeddings of the encoder: [n, dim] unit rows in, [n, dim] unit rows out. `exclude_keys` as in
  /// SearchOptions.
  Matrix refine_images(const MatrixView& embeddings,
                       const std::vector<std::vector<std::string>>& exclude_keys = {}) const;
  Matrix refine_texts(const MatrixView& embeddings,
                      const std::vector<std::vector<std::string>>& exclude_keys = {}) const;

  /// Refines one embedding ([1, dim]) and says what was found and how much it counted.
  Explanation explain(Modality modality, const MatrixView& embedding) const;

  const Clip& clip() const { return clip_; }
  const std::shared_ptr<const MemoryBase>& memory() const { return memory_; }
  const Fusion& fusion() const { return fusion_; }
  const ModelOptions& options() const { return options_; }

 private:
  Neighbors find(Modality modality, const MatrixView& embeddings,
                 const std::vector<std::vector<std::string>>& exclude_keys) const;

  Clip clip_;
  std::shared_ptr<const MemoryBase> memory_;
  Fusion fusion_;
  ModelOptions options_;
};

}  // namespace reco
