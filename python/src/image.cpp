// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <filesystem>
#include <string>

#include "image_array.h"

namespace reco::python {

namespace {

constexpr std::array fit_names{"stretch", "inside", "around"};
constexpr std::array filter_names{"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};

Resample filter_by_name(const std::string& name, const char* tag) {
  for (std::size_t i = 0; i < filter_names.size(); ++i) {
    if (name == filter_names[i]) return static_cast<Resample>(i);
  }
  fail(tag, "filter must be nearest, lanczos, bilinear, bicubic, box or hamming, got '", name, "'");
}

py::array_t<float> run_preprocess(const Preprocess& config, const py::array& array) {
  const Image image = image_from_array(array, "image.preprocess");
  const auto [width, height] = config.output_size(image.width, image.height);
  py::array_t<float> out({3, height, width});
  const std::span<float> values(out.mutable_data(), static_cast<std::size_t>(out.size()));
  const py::gil_scoped_release release;
  preprocess(image, config, values);
  return out;
}

void init_preprocess(py::module_& m) {
  py::class_<Preprocess>(m, "Preprocess", R"(How an image becomes the input of a CLIP model.

The defaults are those of Hugging Face's CLIPImageProcessor; calling the object gives its values. A shortest_edge of 0 means
that resize_height and resize_width hold.)")
      .def(py::init<>())
      .def_static(
          "load", &Preprocess::load, py::arg("path"),
          R"(Read a preprocessor_config.json, or the image_processor of a processor_config.json, or a folder with
one of them; keys that are missing keep their defaults.

Raises
------
Error
    If the file cannot be read or a value makes no sense; names the file and the key.)")
      .def_readwrite("do_resize", &Preprocess::do_resize)
      .def_readwrite("shortest_edge", &Preprocess::shortest_edge)
      .def_readwrite("resize_width", &Preprocess::resize_width)
      .def_readwrite("resize_height", &Preprocess::resize_height)
      .def_property(
          "fit", [](const Preprocess& self) { return fit_names.at(static_cast<std::size_t>(self.fit)); },
          [](Preprocess& self, const std::string& name) {
            const auto found = std::find(fit_names.begin(), fit_names.end(), name);
            check(found != fit_names.end(), "image.Preprocess", "fit must be stretch, inside or around, got '", name,
                  "'");
            self.fit = static_cast<Fit>(found - fit_names.begin());
          })
      .def_property(
          "resample", [](const Preprocess& self) { return filter_names.at(static_cast<std::size_t>(self.resample)); },
          [](Preprocess& self, const std::string& name) { self.resample = filter_by_name(name, "image.Preprocess"); })
      .def_readwrite("do_center_crop", &Preprocess::do_center_crop)
      .def_readwrite("crop_width", &Preprocess::crop_width)
      .def_readwrite("crop_height", &Preprocess::crop_height)
      .def_readwrite("torchvision_crop", &Preprocess::torchvision_crop)
      .def_readwrite("fill", &Preprocess::fill)
      .def_readwrite("do_rescale", &Preprocess::do_rescale)
      .def_readwrite("rescale_factor", &Preprocess::rescale_factor)
      .def_readwrite("do_normalize", &Preprocess::do_normalize)
      .def_readwrite("mean", &Preprocess::mean)
      .def_readwrite("std", &Preprocess::std)
      .def("__call__", &run_preprocess, py::arg("image"), R"(Resize, crop, rescale and normalise one image.

Parameters
----------
image : uint8 array [height, width, 3]

Returns
-------
float32 array [3, height, width]: the crop's size, or the resized image's where do_center_crop is off

Raises
------
Error
    If the image has another shape or dtype.)");
}

}  // namespace

void init_image(py::module_& m) {
  m.def(
      "decode_image",
      [](const py::bytes& file, const std::string& name, std::int64_t max_pixels) {
        const std::string_view data = file;
        Image image;
        {
          const py::gil_scoped_release release;
          image = decode_image(std::as_bytes(std::span(data)), name, max_pixels);
        }
        return image_to_array(std::move(image));
      },
      py::arg("file"), py::arg("name") = "image", py::arg("max_pixels") = std::int64_t{178'956'970},
      R"(Decode a JPEG, PNG or WebP file held in memory, as PIL's Image.open(...).convert("RGB") does.

Parameters
----------
file : bytes
name : str
    Used in error messages only.
max_pixels : int
    Larger images are refused before anything is allocated.

Returns
-------
uint8 array [height, width, 3]

Raises
------
Error
    For an unknown format, a truncated or corrupt file, and for too many pixels.)");
  m.def(
      "read_image",
      [](const std::filesystem::path& path) {
        Image image;
        {
          const py::gil_scoped_release release;
          image = read_image(path);
        }
        return image_to_array(std::move(image));
      },
      py::arg("path"), R"(Decode a JPEG, PNG or WebP file on disk; see decode_image.

Returns
-------
uint8 array [height, width, 3])");
  m.def(
      "resize",
      [](const py::array& array, int width, int height, const std::string& filter) {
        constexpr const char* tag = "image.resize";
        Image image = image_from_array(array, tag);
        const Resample resample = filter_by_name(filter, tag);
        {
          const py::gil_scoped_release release;
          image = resize(image, width, height, resample);
        }
        return image_to_array(std::move(image));
      },
      py::arg("image"), py::arg("width"), py::arg("height"), py::arg("filter") = "bicubic",
      R"(Resize as PIL's Image.resize does, to the byte.

Parameters
----------
image : uint8 array [height, width, 3]
width, height : int
filter : {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"}

Returns
-------
uint8 array [height, width, 3])");
  init_preprocess(m);
}

}  // namespace reco::python
