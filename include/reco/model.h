// SPDX-License-Identifier: Apache-2.0
/// @file
/// The whole: CLIP, what it can look up, and how the two are put together (RECO, arXiv 2306.07196).
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

/// How a model looks things up.
struct ModelOptions {
  std::optional<std::int64_t> k{};        ///< neighbours a query, 1 or more; unless given, as many as the fusion is for
  std::optional<float> max_similarity{};  ///< image neighbours more similar (cosine) than this are left out
};

/// A refined embedding and where it came from. Lists have an entry a neighbour, best first: at most k.
struct Explanation {
  Modality modality = Modality::image;  ///< of the query
  Matrix original{};                    ///< [1, dim] CLIP's embedding
  Matrix refined{};                     ///< [1, dim] what the fusion made of it
  std::vector<std::string> keys{};      ///< of the neighbours
  std::vector<std::string> captions{};  ///< as Memory::captions
  std::vector<std::string> metadata{};  ///< JSON objects, as Memory::metadata
  std::vector<float> scores{};          ///< cosines with the query
  std::vector<float> attention{};       ///< FusionOutput::attention; of both sides together with fuse = "both"
  float gate = 0.0F;                    ///< 0: stayed at CLIP
  float confidence = 0.0F;              ///< FusionOutput::confidence
};

/// A CLIP model that looks things up: its embeddings are CLIP's, refined with what the memory holds. Sees every change
/// of the memory at once. Cheap to copy (copies share weights and memory), thread safe; one call uses threads()
/// threads.
class RECO_API Model {
 public:
  /// Puts the three together. Throws Error when their dimensions or encoder fingerprints do not fit, or for k out of
  /// range.
  Model(Clip clip, Memory memory, Fusion fusion, const ModelOptions& options = {});
  /// The same with pairs that are kept elsewhere.
  Model(Clip clip, std::shared_ptr<const MemoryBase> memory, Fusion fusion, const ModelOptions& options = {});

  /// Encodes and refines image files: [n, dim] unit rows. Throws Error as Clip::encode_images() and refine_images().
  Matrix encode_images(std::span<const std::filesystem::path> files, const Progress& progress = {}) const;
  /// The same of decoded images.
  Matrix encode_images(std::span<const Image> images, const Progress& progress = {}) const;
  /// Encodes and refines texts: [n, dim] unit rows. Throws Error as Clip::encode_texts() and refine_texts().
  Matrix encode_texts(std::span<const std::string> texts, const Progress& progress = {}) const;

  /// Refines image embeddings of the encoder: [n, dim] unit rows in, [n, dim] unit rows out. `exclude_keys` as in
  /// SearchOptions. Throws Error for another number of columns, and as MemoryBase::search() does.
  Matrix refine_images(const MatrixView& embeddings,
                       const std::vector<std::vector<std::string>>& exclude_keys = {}) const;
  /// The same of text embeddings.
  Matrix refine_texts(const MatrixView& embeddings,
                      const std::vector<std::vector<std::string>>& exclude_keys = {}) const;

  /// Refines one embedding ([1, dim]) and says what was found and how much it counted. Throws Error for more or fewer
  /// rows, and as refine_images().
  Explanation explain(Modality modality, const MatrixView& embedding) const;

  const Clip& clip() const { return clip_; }                                   ///< the frozen encoder
  const std::shared_ptr<const MemoryBase>& memory() const { return memory_; }  ///< what is looked up
  const Fusion& fusion() const { return fusion_; }                             ///< what refines
  const ModelOptions& options() const { return options_; }                     ///< how it looks things up

 private:
  Neighbors find(Modality modality, const MatrixView& embeddings,
                 const std::vector<std::vector<std::string>>& exclude_keys) const;

  Clip clip_;
  std::shared_ptr<const MemoryBase> memory_;
  Fusion fusion_;
  ModelOptions options_;
};

}  // namespace reco
