// SPDX-License-Identifier: Apache-2.0
// A model's tensors: where they come from, and each of them under the one name that the towers ask for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "io/torchscript.h"

namespace reco {

/// Everything that lies in a model's weight files, mapped into memory.
struct ClipFiles {
  std::filesystem::path path;
  std::list<io::Safetensors> files;
  std::optional<io::TorchScript> archive;
  std::map<std::string, io::TensorView> tensors;

  /// `stem`.safetensors, or the shards that `stem`.safetensors.index.json lists, or `archive`, which torch.save wrote.
  /// Throws Error naming what is missing or damaged.
  static ClipFiles open(const std::filesystem::path& folder, const std::string& stem, const std::string& archive);

  /// One archive, of TorchScript or torch.save.
  static ClipFiles open_archive(const std::filesystem::path& file);
};

/// Where a format keeps a tensor: under another name, as one of several equal parts stacked in the first dimension,
/// transposed, or with its last rows in a tensor of their own.
struct ClipTensorName {
  std::string name;
  std::int64_t part = 0;
  std::int64_t parts = 1;
  bool transposed = false;
  std::string last{};  ///< where the last rows are; empty: in the same
};
using ClipNames = std::function<ClipTensorName(const std::string&)>;

class ClipWeights {
 public:
  using Shapes = std::map<std::string, std::vector<std::int64_t>>;

  /// Checks that every tensor of `shapes` is there, has this shape and holds F32, F16, BF16 or F64; others are ignored,
  /// a scalar may be a list of one, and a matrix a list of one matrix. Throws Error listing what is missing or does not
  /// fit.
  ClipWeights(ClipFiles files, const Shapes& shapes, const ClipNames& names);

  /// One of the tensors asked for. The view lives as long as this object.
  const io::TensorView& at(const std::string& name) const { return tensors_.at(name); }

  std::int64_t parameters() const;                     ///< elements of all tensors asked for
  const std::string& dtype() const { return dtype_; }  ///< "F16", or "F16, F32" where they differ

  /// 64 hex digits over names, dtypes, shapes and bytes of the tensors asked for, in the names' order, whatever file
  /// they lie in and whatever they are called there, and over `config`.
  std::string fingerprint(const std::string& config) const;

 private:
  io::TensorView view(const io::TensorView& source, const ClipTensorName& where,
                      const std::vector<std::int64_t>& shape);

  ClipFiles files_;
  /// Both tensors of a name as one, in `files_`; nothing to do where there is one, or none.
  void join(const ClipTensorName& where);

  std::list<std::vector<std::byte>> copies_;  // of what is stored transposed or in two
  std::map<std::string, io::TensorView> tensors_;
  std::string dtype_;
};

}  // namespace reco
