// SPDX-License-Identifier: Apache-2.0
// NumPy's .npy format, versions 1 and 2: magic, version, header size, a Python dict as text, then the array in C order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace reco::io {

/// What a .npy file holds. `data` points into the bytes that were given.
struct NpyView {
  std::string dtype;                ///< NumPy's name: "<f2", "<f4", ...
  std::vector<std::int64_t> shape;  ///< C order
  std::span<const std::byte> data;  ///< shape and dtype fit its size
};

/// Checks the header and the size of a whole file. Throws Error, naming the file and the place, for anything but a
/// little-endian number array in C order whose data ends with the file.
NpyView read_npy(std::span<const std::byte> file, const std::string& name);

/// The bytes before the data, a multiple of 64 of them, as NumPy writes them.
std::string npy_header(const std::string& dtype, const std::vector<std::int64_t>& shape);

}  // namespace reco::io
