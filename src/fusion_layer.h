// SPDX-License-Identifier: Apache-2.0
// The fusion's mathematics on ATen tensors; differentiable, so that training and inference share it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "reco/fusion.h"

namespace reco {

/// Weights by name, `image.` and `text.` (or `shared.`) in front; named as PyTorch's TransformerEncoderLayer names its
/// own.
using Parameters = std::map<std::string, at::Tensor>;

struct Fusion::Impl {
  FusionConfig config;
  Parameters parameters;
  std::string encoder;
  std::string provenance = "{}";
};

namespace fusion {

/// A batch of queries [n, d] and what was retrieved for them.
struct Batch {
  at::Tensor queries;   ///< [n, d]
  at::Tensor partners;  ///< [n, k, d]
  at::Tensor scores;    ///< [n, k]
  at::Tensor mask;      ///< [n, k] bool: a neighbour is there
  at::Tensor
      compared{};  ///< [n, d] unit rows whose cosines `scores` are, where those are not of the queries themselves
};

struct Fused {
  at::Tensor embeddings;           ///< [n, d] unit rows
  at::Tensor attention;            ///< [n, k]
  at::Tensor gate;                 ///< [n, 1]
  at::Tensor confidence;           ///< [n, 1]
  at::Tensor trust_logits{};       ///< [n, k], of "gated" alone: what its labels train
  at::Tensor confidence_logits{};  ///< [n], likewise
};

/// The weights of one side under its name.
class Side {
 public:
  Side(const FusionConfig& config, const Parameters& parameters, const std::string& side);
  const at::Tensor& operator[](const std::string& name) const { return parameters_.at(prefix_ + name); }
  bool has(const std::string& name) const { return parameters_.contains(prefix_ + name); }
  at::Tensor linear(const at::Tensor& x, const std::string& name) const;
  at::Tensor layer_norm(const at::Tensor& x, const std::string& name) const;

 private:
  const Parameters& parameters_;
  std::string prefix_;
};

/// The prefix of a side's weights: its name, or "shared".
std::string prefix(const FusionConfig& config, const std::string& side);

/// Whether this side is refined at all.
bool refines(const FusionConfig& config, const std::string& side);

/// Softmax over the neighbours that are there; all zeros where none is.
at::Tensor masked_softmax(const at::Tensor& logits, const at::Tensor& mask);

/// The shape of every weight that a fusion of this config has.
std::map<std::string, std::vector<std::int64_t>> shapes(const FusionConfig& config);

/// Weights drawn from `seed`: Xavier uniform matrices, gains one, biases zero; what must start at CLIP is zero.
Parameters initialise(const FusionConfig& config, std::uint64_t seed);

/// Runs one side ("image" or "text").
Fused fuse(const FusionConfig& config, const Parameters& parameters, const std::string& side, const Batch& batch);

/// A view of an Eigen matrix as a tensor of the given shape; it must outlive the tensor.
at::Tensor view(const MatrixView& matrix, std::vector<std::int64_t> shape);

/// Neighbors and queries as a Batch of views.
Batch batch(const MatrixView& queries, const Neighbors& neighbors);

/// "image" or "text".
const char* side_name(Modality modality);

}  // namespace fusion
}  // namespace reco
