// SPDX-License-Identifier: Apache-2.0
/// @file
/// Fusion: refines an embedding with what was retrieved for it (RECO, arXiv 2306.07196, section 3).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "reco/export.h"
#include "reco/memory_base.h"
#include "reco/types.h"

namespace reco {

/// The shape of a fusion, and what it looks up. Both sides (image, text) have the same shape.
///
/// With q the query, p_i what is fused of its k neighbours (their partners by default) and s_i their similarities:
///  - "transformer", the paper's layer: [q, p_1 .. p_k] plus learned positions through `layers` pre-norm encoder layers
///    and a final LayerNorm (Vaswani et al., arXiv 1706.03762; pre-norm: Xiong et al., arXiv 2002.04745); the query
///    token, scaled to unit length, is the result. 3,159,040 parameters a side at dim 512 and k 10.
///  - "mean", training-free: unit(q + weight * sum_i softmax(sharpness * s)_i p_i).
///  - "gated", ours: unit(q + confidence^4 * (weight * m + c)) with m = sum_i a_i p_i and
///    a = softmax(sharpness * s + log trust + relevance). trust_i is the probability that pair i is a true one,
///    confidence that any of them is, relevance a free logit: three small networks over similarities alone (of query
///    and neighbour, partner and partner, query and partner), so that they carry over to concepts never seen and to any
///    k. Labels teach the first two, the contrastive loss the third: without `relevance` it is left out, and with no
///    layer either nothing but labels is learned from, which on a few thousand pairs harms least. c is what the encoder
///    layers, over tokens scaled by sqrt(dim), change of the query (no c with layers = 0).
///
/// With `metric` s_i of an image is the cosine of M q and M n_i, n_i the neighbour's own image, M = (S + r I)^(-1/2), S
/// the scatter of images within training concepts: where pictures of one thing differ, a difference counts for little
/// (Mahalanobis distance). It costs the neighbours' images beside their texts. train() finds M in closed form.
///
/// An untrained "gated" or "mean" has weight 0 and c = 0: it is CLIP. train() then starts "gated" with the weight and
/// sharpness of the best mean, all pairs trusted alike.
struct FusionConfig {
  std::string method = "gated";      ///< "gated", "transformer" or "mean"
  std::int64_t dim = 512;            ///< width of the embeddings, 1 to 65,536
  std::int64_t k = 10;               ///< neighbours it is made for, 1 to 4,096; "gated" and "mean" take any number
  std::string search = "uni-modal";  ///< "uni-modal": the query's own side of the memory; "cross-modal": the other
  std::string fuse = "partner";      ///< of each neighbour: "partner", the side the query is not; "same"; or "both"
  std::string sides = "both";        ///< queries that are refined: "both", "image" or "text"; others stay at CLIP
  std::int64_t layers = 1;           ///< encoder layers, 0 to 4; "transformer" needs one
  std::int64_t heads = 8;            ///< must divide dim
  double mlp_ratio = 4.0;            ///< hidden width of the layer's MLP over dim, above 0 and at most 64
  bool positions = true;             ///< learned rank positions ("transformer" only)
  bool similarity = false;           ///< the layers' tokens also carry s_i, along a learned direction
  bool residual = false;             ///< unit(q + result / sqrt(dim)) in place of unit(result) ("transformer" only)
  bool shared = false;               ///< one set of weights for both sides
  bool relevance = true;         ///< a free logit for each neighbour, learned from the contrastive loss ("gated" only)
  bool metric = false;           ///< images are compared after a learned linear map ("gated", "uni-modal", not "both")
  std::int64_t gate_width = 16;  ///< hidden units of the gate's networks, 1 to 1,024 ("gated" only)

  /// Embeddings fused for each query: k, or 2 k when both sides of a neighbour are.
  std::int64_t slots() const { return fuse == "both" ? 2 * k : k; }
};

/// Throws Error, naming the field, unless every field of the config is in range.
RECO_API void validate(const FusionConfig& config);

/// What a fusion made of n queries.
struct FusionOutput {
  Matrix embeddings;  ///< [n, dim] unit rows
  Matrix attention;   ///< [n, k] weight of each neighbour (mean over heads for "transformer"); 0 where there is none
  Matrix gate;        ///< [n, 1] weight of the retrieved against the query's 1: 0 stays at CLIP (1 for "transformer")
  Matrix confidence;  ///< [n, 1] probability that something true was retrieved ("gated"; else 1)
};

/// Weights of a training-free mean for one side.
struct MeanWeights {
  float weight = 1.0F;      ///< of the retrieved mean, against 1 for the query; >= 0
  float sharpness = 10.0F;  ///< inverse temperature of the softmax over similarities; >= 0, 0 is a plain mean
};

/// The weights that refine embeddings, one set a side. Immutable, cheap to copy, thread safe; one call uses threads()
/// threads.
class RECO_API Fusion {
 public:
  /// An untrained fusion with weights drawn from `seed`; "gated" and "mean" start at CLIP (weight 0). Throws Error for
  /// a config out of range.
  static Fusion create(const FusionConfig& config, std::uint64_t seed = 0);

  /// A training-free mean with these weights; needs no file. Throws Error for a dim or weights out of range.
  static Fusion mean(std::int64_t dim, const MeanWeights& image, const MeanWeights& text);

  /// Reads a safetensors file that save() wrote. Throws Error naming file, tensor and shapes when it does not fit.
  static Fusion load(const std::filesystem::path& file);

  /// Writes one safetensors file, durably; its metadata holds config, encoder and provenance. Throws Error when the
  /// file cannot be written; then what was there before is still there.
  void save(const std::filesystem::path& file) const;

  /// Refines n queries [n, dim] of unit length with their neighbours. Without neighbours a query comes back unchanged,
  /// but for "transformer". With fuse = "both" the neighbours come as 2 k columns: all partners, then all same sides.
  /// With `metric` those of images come with their same sides (Neighbors::same), as find_neighbors() gives them.
  /// Throws Error when shapes do not fit, or there are more columns than config.slots() for "transformer".
  FusionOutput fuse(Modality modality, const MatrixView& queries, const Neighbors& neighbors) const;

  const FusionConfig& config() const;     ///< its shape, and what it looks up
  std::int64_t parameters() const;        ///< number of weights of both sides
  const std::string& encoder() const;     ///< fingerprint of the encoder it was trained with; "" fits any
  const std::string& provenance() const;  ///< JSON object: how it was trained

  /// @cond internal
  struct Impl;
  explicit Fusion(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  const Impl& impl() const { return *impl_; }
  /// @endcond

 private:
  std::shared_ptr<const Impl> impl_;
};

/// What a fusion of this config fuses for queries [n, dim] of a modality, which options.modality names:
/// [n, config.slots()] with options.k for k. options.max_similarity counts where images are compared with images.
/// Throws Error as MemoryBase::search() does. Thread safe.
RECO_API Neighbors find_neighbors(const MemoryBase& memory, const FusionConfig& config, const MatrixView& queries,
                                  SearchOptions options);

}  // namespace reco
