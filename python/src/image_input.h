// SPDX-License-Identifier: Apache-2.0
// What Python gives where an image is expected: a path, the bytes of a file, a PIL image, an array.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "helpers.h"
#include "reco/image.h"

namespace reco::python {

/// One of them; it is read when its turn comes.
class ImageInput {
 public:
  /// Throws TypeError for anything else; `tag` begins the messages of all errors.
  ImageInput(const py::object& given, const char* tag);

  /// The pixels, in RGB or, where the preprocessing asks for it, in the image's own mode. `name` is for messages, of
  /// what has no path. Called without the GIL, from several threads at once.
  Image read(const Preprocess& config, const std::string& name) const;

 private:
  enum class Kind { path, bytes, pil, array };

  Image read_path(const Preprocess& config) const;
  Image through_pil(const Preprocess& config, const std::string& name) const;

  Kind kind_;
  std::filesystem::path path_;
  py::object object_;                 // the bytes, the PIL image or the array
  bool native_ = false;               // a file that the library decodes; others PIL does
  std::span<const std::byte> bytes_;  // of `object_`
  const char* tag_;
};

/// Of one image, or of several: any iterable of them, or an array with four dimensions.
std::vector<ImageInput> image_inputs(const py::object& images, const char* tag);

}  // namespace reco::python
