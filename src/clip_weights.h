// SPDX-License-Identifier: Apache-2.0
// The weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json lists.
#pragma once

#include <cstdint>
#include <filesystem>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace reco {

class ClipWeights {
 public:
  using Shapes = std::map<std::string, std::vector<std::int64_t>>;

  /// Opens the files and checks that every tensor of `shapes` is there, has this shape and holds F32, F16, BF16 or F64;
  /// others are ignored. Throws Error listing what is missing or does not fit.
  ClipWeights(const std::filesystem::path& folder, const Shapes& shapes);

  /// One of the tensors asked for. The view lives as long as this object.
  const io::TensorView& at(const std::string& name) const { return tensors_.at(name); }

  std::int64_t parameters() const;                     ///< elements of all tensors asked for
  const std::string& dtype() const { return dtype_; }  ///< "F16", or "F16, F32" where they differ

  /// 64 hex digits over names, dtypes, shapes and bytes of the tensors asked for, in the names' order, whatever file
  /// they lie in, and over `config`.
  std::string fingerprint(const std::string& config) const;

 private:
  void open_shards(const std::filesystem::path& index, const Shapes& shapes);
  void check_shapes(const Shapes& shapes) const;

  std::filesystem::path path_;
  std::list<io::Safetensors> files_;
  std::map<std::string, io::TensorView> tensors_;
  std::string dtype_;
};

}  // namespace reco
