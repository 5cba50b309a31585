// SPDX-License-Identifier: Apache-2.0
// Images from and to NumPy.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "helpers.h"
#include "reco/image.h"

namespace reco::python {

/// Copies a uint8 [height, width, 3] array or tensor; anything else gets an Error with `tag`.
inline Image image_from_array(const py::handle& given, const char* tag) {
  const py::array array = any_array(given);
  check(py::isinstance<py::array_t<std::uint8_t>>(array), tag, "image must be a uint8 array, got ", dtype_of(array));
  check(array.ndim() == 3 && array.shape(2) == 3, tag, "image must be a [height, width, 3] array, got ", array.ndim(),
        " dimensions", array.ndim() == 3 ? " with another last one" : "");
  constexpr auto most = std::numeric_limits<int>::max();
  check(array.shape(0) <= most && array.shape(1) <= most, tag, "image must have sides below 2^31");
  const auto bytes = py::array_t<std::uint8_t, py::array::c_style>::ensure(array);
  return {
      static_cast<int>(array.shape(1)), static_cast<int>(array.shape(0)), {bytes.data(), bytes.data() + bytes.size()}};
}

/// Hands the pixels over as a uint8 [height, width, 3] array, without a copy.
inline py::array_t<std::uint8_t> image_to_array(Image&& image) {
  auto* owned = new std::vector<std::uint8_t>(std::move(image.pixels));
  const py::capsule owner(owned, [](void* pointer) { delete static_cast<std::vector<std::uint8_t>*>(pointer); });
  const std::vector<py::ssize_t> shape{image.height, image.width, 3};
  return py::array_t<std::uint8_t>(shape, owned->data(), owner);
}

}  // namespace reco::python
