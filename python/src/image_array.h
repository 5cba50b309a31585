// SPDX-License-Identifier: Apache-2.0
// Images from and to NumPy.
#pragma once

#include <algorithm>
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
  Image image = new_image(static_cast<int>(array.shape(1)), static_cast<int>(array.shape(0)));
  std::copy_n(bytes.data(), bytes.size(), image.pixels.begin());
  return image;
}

inline constexpr const char* image_capsule = "reco.Image";

/// The image of which image_to_array() made this array, which then need not be copied; null for any other array.
inline const Image* lent_image(const py::handle& given) {
  if (!py::isinstance<py::array_t<std::uint8_t, py::array::c_style>>(given)) return nullptr;
  const auto array = py::reinterpret_borrow<py::array>(given);
  const py::object base = array.base();
  if (!base || PyCapsule_IsValid(base.ptr(), image_capsule) == 0) return nullptr;
  const auto* image = static_cast<const Image*>(PyCapsule_GetPointer(base.ptr(), image_capsule));
  const bool whole = array.data() == image->pixels.data() && array.ndim() == 3 && array.shape(0) == image->height &&
                     array.shape(1) == image->width && array.shape(2) == 3;
  return whole ? image : nullptr;
}

/// Hands the pixels over as a uint8 [height, width, 3] array, without a copy.
inline py::array_t<std::uint8_t> image_to_array(Image&& image) {
  const std::vector<py::ssize_t> shape{image.height, image.width, 3};
  auto* owned = new Image(std::move(image));
  const py::capsule owner(owned, image_capsule, [](PyObject* capsule) {
    auto* lent = static_cast<Image*>(PyCapsule_GetPointer(capsule, image_capsule));
    recycle(std::move(*lent));
    delete lent;
  });
  return py::array_t<std::uint8_t>(shape, owned->pixels.data(), owner);
}

}  // namespace reco::python
