// SPDX-License-Identifier: Apache-2.0
// Zero-shot metrics as CLIP_benchmark defines them, over embeddings of any origin.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/types.h"

namespace reco {

struct Classification {
  double acc1 = 0;                        ///< share of images whose best class is right
  double acc5 = 0;                        ///< share whose right class is among the best min(5, classes)
  double mean_per_class_recall = 0;       ///< acc1 averaged over the classes that have images
  std::vector<std::int64_t> predictions;  ///< best class of each image
};

struct Retrieval {
  double image_recall_at_1 = 0, image_recall_at_5 = 0, image_recall_at_10 = 0;  ///< text to image
  double text_recall_at_1 = 0, text_recall_at_5 = 0, text_recall_at_10 = 0;     ///< image to text
};

/// Classifies images [n, dim] among classes [c, dim] by cosine; labels are 0 .. c - 1. Of equal scores the lower class
/// wins. Throws Error for shapes or labels that do not fit, or n = 0.
RECO_API Classification classify(const MatrixView& images, const MatrixView& classes,
                                 std::span<const std::int64_t> labels);

/// Retrieval between images [n, dim] and texts [m, dim]; `image_of_text[j]` is the row of text j's image. An image's
/// texts count as found when any of them is among the first k. Throws Error for shapes or rows that do not fit.
RECO_API Retrieval retrieve(const MatrixView& images, const MatrixView& texts,
                            std::span<const std::int64_t> image_of_text);

/// 2ab / (a + b); 0 when both are 0. OVEN's mean of seen and unseen accuracy.
RECO_API double harmonic_mean(double a, double b);

/// The prompts of all classes, class by class: each template with `{}` (CLIP_benchmark: `{c}`) replaced by the class
/// name. Throws Error for a template without a place for the name.
RECO_API std::vector<std::string> prompts(std::span<const std::string> classnames,
                                          std::span<const std::string> templates);

/// Averages the embeddings [classes * templates, dim] of prompts() over the templates: [classes, dim] unit rows.
RECO_API Matrix average_prompts(const MatrixView& embeddings, std::int64_t templates);

}  // namespace reco
