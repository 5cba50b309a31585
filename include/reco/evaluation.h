// SPDX-License-Identifier: Apache-2.0
/// @file
/// Zero-shot metrics as CLIP_benchmark 1.6 (LAION) defines them, over embeddings of any origin. Matrices have an
/// embedding a row; all functions are thread safe and use threads() threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/memory.h"
#include "reco/types.h"

namespace reco {

/// What classify() found; shares are from 0 to 1.
struct Classification {
  double acc1 = 0;                        ///< share of images whose best class is right
  double acc5 = 0;                        ///< share whose right class is among the best min(5, classes)
  double mean_per_class_recall = 0;       ///< acc1 averaged over the classes that have images
  std::vector<std::int64_t> predictions;  ///< [n] best class of each image
};

/// What retrieve() found: shares of queries, from 0 to 1, with something right among the first k.
struct Retrieval {
  double image_recall_at_1 = 0;   ///< text to image, k = 1
  double image_recall_at_5 = 0;   ///< text to image, k = 5
  double image_recall_at_10 = 0;  ///< text to image, k = 10
  double text_recall_at_1 = 0;    ///< image to text, k = 1
  double text_recall_at_5 = 0;    ///< image to text, k = 5
  double text_recall_at_10 = 0;   ///< image to text, k = 10
};

/// A confidence interval, in the unit of the values.
struct Interval {
  double low = 0;   ///< lower end
  double high = 0;  ///< upper end
};

/// How bootstrap() draws.
struct BootstrapOptions {
  std::int64_t resamples = 1000;  ///< draws, 1 or more
  double confidence = 0.95;       ///< share of the resamples between low and high, above 0 and below 1
  std::uint64_t seed = 0;         ///< the same seed gives the same draws, however many threads there are
};

/// Classifies images [n, dim] among classes [c, dim], unit rows, by cosine; labels [n] are 0 .. c - 1. Of equal scores
/// the lower class wins. Throws Error for shapes or labels that do not fit, or n = 0.
RECO_API Classification classify(const MatrixView& images, const MatrixView& classes,
                                 std::span<const std::int64_t> labels);

/// Training-free: how the neighbours of n images vote on their labels. Of each class, the sum of its neighbours'
/// weights softmax(sharpness * similarity): [n, classes], rows add up to at most 1. `labels[i * k + j]` is the class of
/// neighbour j of image i, -1 for one that is none of them. The form is that of Khandelwal et al. (arXiv 1911.00172,
/// equation 2). Throws Error for labels that do not fit.
RECO_API Matrix vote(const Neighbors& neighbors, std::span<const std::int64_t> labels, std::int64_t classes,
                     float sharpness = 10.0F);

/// Training-free: (1 - weight) * softmax(logit_scale * cosine) + weight * votes, for cosines [n, classes] of images and
/// classes and the votes [n, classes] of vote(): probabilities [n, classes] (Khandelwal et al., arXiv 1911.00172,
/// equation 3). Throws Error for shapes that differ or a weight outside [0, 1].
RECO_API Matrix blend(const MatrixView& cosines, const MatrixView& votes, float logit_scale, float weight = 0.5F);

/// Retrieval between images [n, dim] and texts [m, dim], unit rows; `image_of_text[j]` is the row of text j's image. An
/// image's texts count as found when any of them is among the first k. Throws Error for shapes or rows that do not fit.
RECO_API Retrieval retrieve(const MatrixView& images, const MatrixView& texts,
                            std::span<const std::int64_t> image_of_text);

/// Place (0: best) of each query's best right candidate by cosine, for queries [n, dim] and candidates [m, dim];
/// `targets[i]` is a right candidate of query `target_queries[i]`, or of query i where that is empty. Of equal scores
/// the lower candidate is the better. A query without a target gets m. Throws Error for shapes or rows that do not fit.
RECO_API std::vector<std::int64_t> ranks(const MatrixView& queries, const MatrixView& candidates,
                                         std::span<const std::int64_t> targets,
                                         std::span<const std::int64_t> target_queries = {});

/// Percentile interval (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979) of the mean of `values`, such
/// as 1 for a right answer and 0 for a wrong one.
/// What is drawn with replacement are units: `units[i]` is that of value i (an image with all its captions), from 0 on;
/// empty: each value is its own. With `groups` the mean is that of the groups' means (mean_per_class_recall). The same
/// seed draws the same units whatever the values. Throws Error for sizes that do not fit, no values, values that are
/// not finite, negative units or groups, no resamples, or a confidence outside (0, 1).
RECO_API Interval bootstrap(std::span<const double> values, std::span<const std::int64_t> units = {},
                            std::span<const std::int64_t> groups = {}, const BootstrapOptions& options = {});

/// 2ab / (a + b); 0 when both are 0. OVEN's mean of seen and unseen accuracy (Hu et al., arXiv 2302.11154).
RECO_API double harmonic_mean(double a, double b);

/// The prompts of all classes, class by class: each template with `{}` (CLIP_benchmark: `{c}`) replaced by the class
/// name. Throws Error for a template without a place for the name.
RECO_API std::vector<std::string> prompts(std::span<const std::string> classnames,
                                          std::span<const std::string> templates);

/// Averages the embeddings [classes * templates, dim] of prompts() over the templates: [classes, dim] unit rows
/// (Radford et al. 2021, section 3.1.4). Throws Error when `templates` does not divide the rows.
RECO_API Matrix average_prompts(const MatrixView& embeddings, std::int64_t templates);

}  // namespace reco
