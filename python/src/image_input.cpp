// SPDX-License-Identifier: Apache-2.0
#include "image_input.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <memory>

#include "image_array.h"

namespace reco::python {

namespace {

namespace fs = std::filesystem;

bool is_path(const py::handle& x) { return py::isinstance<py::str>(x) || py::hasattr(x, "__fspath__"); }
bool is_bytes(const py::handle& x) {
  return PyBytes_Check(x.ptr()) || PyByteArray_Check(x.ptr()) || PyMemoryView_Check(x.ptr());
}
bool is_pil(const py::handle& x) { return py::hasattr(x, "convert") && py::hasattr(x, "getbands"); }

bool is_array(const py::handle& x) { return py::isinstance<py::array>(x) || is_tensor(x); }

bool is_one(const py::object& x) {
  return is_path(x) || is_bytes(x) || is_pil(x) || (is_array(x) && x.attr("ndim").cast<int>() != 4);
}

/// JPEG, PNG or WebP by its first bytes. Files that cannot be read count too: the library's error says why.
bool is_native(std::string_view head) {
  using namespace std::string_view_literals;
  return head.empty() || head.starts_with("\xff\xd8\xff"sv) || head.starts_with("\x89PNG"sv) ||
         (head.starts_with("RIFF"sv) && head.size() >= 12 && head.substr(8, 4) == "WEBP"sv);
}

bool has_native_content(const fs::path& path) {
  std::string head(12, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(head.data(), 12);
  head.resize(static_cast<std::size_t>(file.gcount()));
  return is_native(std::string_view(head));
}

/// The usual suffixes are believed until the library cannot read the file: that saves opening a million files twice.
bool is_native(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffix == ".jpg" || suffix == ".jpeg" || suffix == ".png" || suffix == ".webp" || has_native_content(path);
}

std::span<const std::byte> span_of(const py::object& bytes) {
  char* data = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
  return {reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(size)};
}

// ---- PIL's images

/// The bytes of the pixels, as PIL has them: I;16 with the low byte first.
std::vector<std::uint8_t> bytes_of(const py::object& pil) {
  const auto bytes = pil.attr("tobytes")().cast<py::bytes>();
  const std::string_view view = bytes;
  return {view.begin(), view.end()};
}

/// PIL's palette, filled up with the black that it takes for what lies beyond its end.
std::vector<std::uint8_t> palette_of(const py::object& pil) {
  auto palette = pil.attr("getpalette")("RGB").cast<std::vector<std::uint8_t>>();
  palette.resize(std::size_t{3} * 256);
  return palette;
}

/// Black, and white for all other bytes.
std::vector<std::uint8_t> black_and_white() {
  std::vector<std::uint8_t> palette(std::size_t{3} * 256, 255);
  std::fill_n(palette.begin(), 3, std::uint8_t{0});
  return palette;
}

/// An image in one of the modes that the library knows; all others are resized by PIL, and RGB then (what fills up
/// around them is gray, whatever the same bytes are in another colour space).
Image from_pil(const py::object& pil, const Preprocess& config) {
  const int width = pil.attr("width").cast<int>(), height = pil.attr("height").cast<int>();
  const auto mode = pil.attr("mode").cast<std::string>();
  const auto as = [&](const py::object& pixels, ImageMode kind, std::vector<std::uint8_t> palette = {}) {
    return Image{width, height, bytes_of(pixels), kind, std::move(palette)};
  };
  if (config.rgb_first || mode == "RGB" || mode == "L") return as(pil.attr("convert")("RGB"), ImageMode::rgb);
  if (mode == "P") return as(pil, ImageMode::palette, palette_of(pil));
  if (mode == "1") return as(pil.attr("convert")("L"), ImageMode::palette, black_and_white());
  if (mode == "LA" || mode == "RGBA") return as(pil.attr("convert")("RGBA"), ImageMode::rgba);
  if (mode == "CMYK") return as(pil, ImageMode::cmyk);
  if (mode == "I;16") return as(pil, ImageMode::gray16);
  if (!config.do_resize) return as(pil.attr("convert")("RGB"), ImageMode::rgb);
  const auto [columns, rows] = config.resized_size(width, height);
  const py::object resized = pil.attr("resize")(py::make_tuple(columns, rows), static_cast<int>(config.resample));
  return {static_cast<int>(columns), static_cast<int>(rows), bytes_of(resized.attr("convert")("RGB"))};
}

}  // namespace

ImageInput::ImageInput(const py::object& given, const char* tag) : kind_(Kind::array), tag_(tag) {
  if (is_bytes(given)) {
    kind_ = Kind::bytes;
    object_ = py::reinterpret_steal<py::object>(PyBytes_FromObject(given.ptr()));  // itself, if it is bytes
    if (!object_) throw py::error_already_set();
    bytes_ = span_of(object_);
    native_ = is_native(std::string_view(reinterpret_cast<const char*>(bytes_.data()), bytes_.size()));
  } else if (is_path(given)) {
    kind_ = Kind::path;
    path_ = given.cast<fs::path>();
    native_ = is_native(path_);
  } else if (is_array(given)) {
    object_ = any_array(given);
  } else if (is_pil(given)) {
    kind_ = Kind::pil;
    object_ = given;
  } else {
    const std::string name = std::string(tag).substr(std::string_view(tag).find('.') + 1);
    throw py::type_error(name + " takes paths, bytes, PIL images and uint8 arrays [height, width, 3], got " +
                         py::str(py::type::of(given)).cast<std::string>());
  }
}

Image ImageInput::read(const Preprocess& config, const std::string& name) const {
  if (native_ && kind_ == Kind::path) return read_path(config);
  if (native_) return decode_image(bytes_, name, max_image_pixels, config.rgb_first);
  const py::gil_scoped_acquire gil;
  if (kind_ != Kind::array) return through_pil(config, kind_ == Kind::path ? path_.string() : name);
  try {
    return image_from_array(object_, tag_);
  } catch (const Error& error) {
    fail(tag_, name, ": ", error.what());
  }
}

/// Of a file whose suffix may be wrong: a GIF is one by any name.
Image ImageInput::read_path(const Preprocess& config) const {
  try {
    return read_image(path_, config.rgb_first);
  } catch (const Error&) {
    if (has_native_content(path_)) throw;
  }
  const py::gil_scoped_acquire gil;
  return through_pil(config, path_.string());
}

/// Of an image object, or of a file in a format that only PIL knows.
Image ImageInput::through_pil(const Preprocess& config, const std::string& name) const {
  try {
    if (kind_ == Kind::pil) return from_pil(object_, config);
    const py::object source =
        kind_ == Kind::path ? py::cast(path_) : py::module_::import("io").attr("BytesIO")(object_);
    return from_pil(py::module_::import("PIL.Image").attr("open")(source), config);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) {  // KeyboardInterrupt says nothing about the image
      pending_error() = std::make_unique<py::error_already_set>(std::move(error));
      throw Interrupted("[interrupted] while PIL read an image");
    }
    fail(tag_, "'", name, "' is neither JPEG, PNG nor WebP, and PIL cannot read it: ", error.what());
  }
}

std::vector<ImageInput> image_inputs(const py::object& images, const char* tag) {
  std::vector<ImageInput> inputs;
  if (is_one(images)) {
    inputs.emplace_back(images, tag);
  } else {
    for (const py::handle& image : images) inputs.emplace_back(py::reinterpret_borrow<py::object>(image), tag);
  }
  return inputs;
}

}  // namespace reco::python
