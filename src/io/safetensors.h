// SPDX-License-Identifier: Apache-2.0
// The safetensors format: 8 bytes little-endian header size, a JSON header, raw little-endian tensors. Every offset,
// shape and size is checked before any tensor is handed out; a hostile file gives an Error, never a read out of bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace reco::io {

struct TensorView {
  std::string dtype;  ///< "F32", "F16", "BF16", "I64", ...
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;  ///< shape and dtype fit its size
  std::int64_t count() const;       ///< number of elements
};

/// Bytes an element, 0 for dtypes unknown to the format.
std::size_t element_size(std::string_view dtype);

/// A memory-mapped safetensors file. The views live as long as the object.
class Safetensors {
 public:
  /// Throws Error naming the file and what is wrong with it.
  explicit Safetensors(const std::filesystem::path& path);
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Converts F32, F16, BF16 or F64 elements to float32. Throws Error (with `name`) for other dtypes or another size.
void to_float32(const TensorView& tensor, std::span<float> out, const std::string& name);

/// Writes a file durably (see write_file_durably); tensors with large elements first, then
/// in the map's order; all of them aligned.
void write_safetensors(const std::filesystem::path& path, const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace reco::io
