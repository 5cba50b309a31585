// SPDX-License-Identifier: Apache-2.0
/// @file
/// The types that every module shares.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <functional>
#include <string>

/// Retrieval-enhanced CLIP.
namespace reco {

/// Row-major float32; one row an item. Embeddings have rows of unit length.
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A read-only view of a Matrix: binds to a Matrix or to an Eigen::Map over foreign memory without a copy.
using MatrixView = Eigen::Ref<const Matrix>;

/// Row-major int64, for token ids, row numbers and labels.
using IndexMatrix = Eigen::Matrix<std::int64_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Which side of an image-text pair is meant.
enum class Modality {
  image,  ///< the image
  text    ///< the text, its caption
};

/// Called between batches of long work with (items done, items in all); return false to stop, which throws
/// reco::Error with the tag `[interrupted]`. Called on the caller's thread only.
using Progress = std::function<bool(std::int64_t done, std::int64_t total)>;

}  // namespace reco
