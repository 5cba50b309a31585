// SPDX-License-Identifier: Apache-2.0
// The tensors of a TorchScript archive (or of a state dict that torch.save wrote): a zip of stored, uncompressed files,
// a pickle that describes objects, and one file a storage. The pickle is read as data: nothing that it names is looked
// up or called, only tensors and where they hang are kept. Every offset, shape and size is checked before any tensor is
// handed out; a hostile file gives an Error, never a read out of bounds.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "io/file.h"
#include "io/safetensors.h"

namespace reco::io {

/// A memory-mapped archive. The views live as long as the object.
class TorchScript {
 public:
  /// Throws Error naming the file and what is wrong with it.
  explicit TorchScript(const std::filesystem::path& path);
  /// By the path of attributes that leads to them, such as "visual.conv1.weight".
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

 private:
  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
};

}  // namespace reco::io
