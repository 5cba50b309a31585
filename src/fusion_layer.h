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

/// Weights by name, `image.` and `text.` in front; named as PyTorch's TransformerEncoderLayer names its own.
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
};

struct Fused {
  at::Tensor embeddings;  ///< [n, d] unit rows
  at::Tensor attention;   ///< [n, k]
  at::Tensor gate;        ///< [n, 1]
};

/// The shape of every weight that a fusion of this config has.
std::map<std::string, std::vector<std::int64_t>> shapes(const FusionConfig& config);

/// Weights drawn from `seed`: Xavier uniform matrices, gains one, biases zero; what must start at CLIP is zero.
Parameters initialise(const FusionConfig& config, std::uint64_t seed);

/// Runs one side ("image" or "text").
Fused fuse(const FusionConfig& config, const Parameters& parameters, const std::string& side, const Batch& batch);

/// The gate's input features, before they are standardised: of each neighbour [n, k, 4] and of each query [n, 5].
std::pair<at::Tensor, at::Tensor> features(const Parameters& parameters, const std::string& side, const Batch& batch);

/// A view of an Eigen matrix as a tensor of the given shape; it must outlive the tensor.
at::Tensor view(const MatrixView& matrix, std::vector<std::int64_t> shape);

/// Neighbors and queries as a Batch of views.
Batch batch(const MatrixView& queries, const Neighbors& neighbors);

/// "image" or "text".
const char* side_name(Modality modality);

}  // namespace fusion
}  // namespace reco
