// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <utility>

#include "image_array.h"
#include "image_input.h"
#include "options.h"

namespace reco::python {

namespace {

constexpr std::array fit_names{"stretch", "inside", "around"};
constexpr std::array filter_names{"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};

/// The enumerator of a name.
template <typename Enum, std::size_t size>
Enum by_name(const std::array<const char*, size>& names, const std::string& name, const char* tag, const char* what) {
  std::string expected;
  for (std::size_t i = 0; i < size; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    expected += (i == 0 ? "" : i + 1 == size ? " or " : ", ") + std::string(names[i]);
  }
  fail(tag, what, " must be ", expected, ", got '", name, "'");
}

Image read_input(const ImageInput& input, const Preprocess& config) {
  const LongCall unlocked;
  return input.read(config, "image");
}

py::array_t<float> run_preprocess(const Preprocess& config, const Image& image) {
  const auto [width, height] = config.output_size(image.width, image.height);
  py::array_t<float> out({3, height, width});
  const std::span<float> values(out.mutable_data(), static_cast<std::size_t>(out.size()));
  const LongCall unlocked;
  preprocess(image, config, values);
  return out;
}

py::array_t<float> call_preprocess(const Preprocess& config, const py::object& given) {
  if (const Image* lent = lent_image(given)) return run_preprocess(config, *lent);
  Image image = read_input({given, "image.preprocess"}, config);
  py::array_t<float> out = run_preprocess(config, image);
  recycle(std::move(image));
  return out;
}

Image resize_array(const py::object& array, int width, int height, Resample filter, const char* tag) {
  const Image* lent = lent_image(array);
  Image copy = lent == nullptr ? image_from_array(array, tag) : Image();
  const LongCall unlocked;
  Image resized = resize(lent == nullptr ? copy : *lent, width, height, filter);
  recycle(std::move(copy));
  return resized;
}

/// A field whose values have names.
template <typename Enum, std::size_t size>
void add_choice(Options<Preprocess>& options, const char* name, Enum Preprocess::*member,
                const std::array<const char*, size>& names, const char* doc) {
  options.field(
      name,
      [member, &names](const Preprocess& self) { return py::cast(names.at(static_cast<std::size_t>(self.*member))); },
      [member, &names, name](Preprocess& self, const py::handle& value) {
        self.*member = by_name<Enum>(names, py::cast<std::string>(value), "image.Preprocess", name);
      },
      doc);
}

void init_preprocess(py::module_& m) {
  Options<Preprocess> options("Preprocess", R"(How an image becomes the input of a CLIP model; calling it does it.

The defaults are those of Hugging Face's CLIPImageProcessor; calling the object gives its values to the last bit. All
fields may be set. The order is: resize, crop, rescale, normalise.

Parameters
----------
rgb_first : bool
    Convert to RGB before all else, as Hugging Face does; open_clip and OpenAI resize an image in its own mode (palette,
    with alpha, CMYK, 16-bit gray), and convert what they cut out of that.
do_resize : bool
    Resize at all.
shortest_edge : int
    Pixels of the shorter side after resizing; 0: resize_width and resize_height hold.
resize_width, resize_height : int
    Pixels after resizing, where shortest_edge is 0.
fit : {"stretch", "inside", "around"}
    With both sides given: the aspect is lost, or kept with the image inside them, or around them.
resample : {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"}
    PIL's filter.
do_center_crop : bool
    Cut, or fill, around the middle.
crop_width, crop_height : int
    Pixels of the result.
torchvision_crop : bool
    Halve odd margins as torchvision does, not as Hugging Face does.
fill : int
    Byte around an image that is smaller than the crop.
do_rescale : bool
    Multiply bytes by rescale_factor.
rescale_factor : float
    From bytes to numbers, 1/255 as a rule.
do_normalize : bool
    Subtract mean and divide by std, channel by channel.
mean, std : list of 3 float
    Of red, green and blue.

Raises
------
Error
    For an unknown fit or resample.

Examples
--------
>>> import reco
>>> reco.Preprocess(shortest_edge=336, crop_width=336, crop_height=336).resample
'bicubic'
)");
  options.field("rgb_first", &Preprocess::rgb_first, "Whether images become RGB before they are resized.")
      .field("do_resize", &Preprocess::do_resize, "Whether to resize at all.")
      .field("shortest_edge", &Preprocess::shortest_edge,
             "Pixels of the shorter side after resizing; 0: both are given.")
      .field("resize_width", &Preprocess::resize_width, "Pixels after resizing, where shortest_edge is 0.")
      .field("resize_height", &Preprocess::resize_height, "Pixels after resizing, where shortest_edge is 0.");
  add_choice(options, "fit", &Preprocess::fit, fit_names,
             "What becomes of the aspect: 'stretch', 'inside' or 'around'.");
  add_choice(options, "resample", &Preprocess::resample, filter_names, "PIL's filter, by name.");
  options.field("do_center_crop", &Preprocess::do_center_crop, "Whether to cut, or fill, around the middle.")
      .field("crop_width", &Preprocess::crop_width, "Pixels of the result.")
      .field("crop_height", &Preprocess::crop_height, "Pixels of the result.")
      .field("torchvision_crop", &Preprocess::torchvision_crop, "Whether odd margins are halved as torchvision does.")
      .field("fill", &Preprocess::fill, "Byte around an image that is smaller than the crop.")
      .field("do_rescale", &Preprocess::do_rescale, "Whether bytes are multiplied by rescale_factor.")
      .field("rescale_factor", &Preprocess::rescale_factor, "From bytes to numbers.")
      .field("do_normalize", &Preprocess::do_normalize, "Whether mean is subtracted and std divided by.")
      .field("mean", &Preprocess::mean, "Of red, green and blue: list of 3 float.")
      .field("std", &Preprocess::std, "Of red, green and blue: list of 3 float.");
  options.define(m, {}, true)
      .def_static("load", &Preprocess::load, py::arg("path"), R"(Read what a model's folder says.

Parameters
----------
path : str or Path
    A preprocessor_config.json, or a processor_config.json, whose image_processor is taken, or an open_clip_config.json,
    or a folder with one of them. Keys that are missing keep their defaults.

Returns
-------
Preprocess

Raises
------
Error
    If the file cannot be read or a value makes no sense; names the file and the key.
)")
      .def("__call__", &call_preprocess, py::arg("image"), R"(Resize, crop, rescale and normalise one image.

Parameters
----------
image : str, Path, bytes, PIL image or uint8 array [height, width, 3]
    As Clip.encode_images takes it.

Returns
-------
float32 array [3, height, width]
    Of the crop's size, or the resized image's where do_center_crop is off.

Raises
------
Error
    If the image cannot be read, or has another shape or dtype.
)");
}

}  // namespace

void init_image(py::module_& m) {
  define(
      m, "decode_image",
      [](const py::bytes& file, const std::string& name, std::int64_t max_pixels) {
        const std::string_view data = file;
        Image image;
        {
          const LongCall unlocked;
          image = decode_image(std::as_bytes(std::span(data)), name, max_pixels);
        }
        return image_to_array(std::move(image));
      },
      py::arg("file"), py::arg("name") = "image", py::arg("max_pixels") = max_image_pixels,
      R"(Decode a JPEG, PNG or WebP file held in memory, as PIL's ``Image.open(...).convert("RGB")`` does.

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
    For an unknown format, a truncated or corrupt file, and for too many pixels.
)");
  define(
      m, "read_image",
      [](const std::filesystem::path& path) {
        Image image;
        {
          const LongCall unlocked;
          image = read_image(path);
        }
        return image_to_array(std::move(image));
      },
      py::arg("path"), R"(Decode a JPEG, PNG or WebP file on disk; see decode_image.

Parameters
----------
path : str or Path

Returns
-------
uint8 array [height, width, 3]

Raises
------
Error
    As decode_image, and for a file that cannot be read; names it.
)");
  define(
      m, "resize",
      [](const py::object& array, int width, int height, const std::string& filter) {
        constexpr const char* tag = "image.resize";
        const auto resample = by_name<Resample>(filter_names, filter, tag, "filter");
        return image_to_array(resize_array(array, width, height, resample, tag));
      },
      py::arg("image"), py::arg("width"), py::arg("height"), py::arg("filter") = "bicubic",
      R"(Resize as PIL's Image.resize does, to the byte.

Parameters
----------
image : uint8 array [height, width, 3]
width, height : int
    Pixels, 1 to 65,535.
filter : {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"}

Returns
-------
uint8 array [height, width, 3]

Raises
------
Error
    For another shape or dtype, a size out of range, an unknown filter.
)");
  init_preprocess(m);
}

}  // namespace reco::python
