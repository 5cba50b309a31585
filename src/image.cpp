// SPDX-License-Identifier: Apache-2.0
#include "reco/image.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "image_resize.h"
#include "io/json.h"
#include "reco/error.h"

namespace reco {

namespace {

using nlohmann::json;

constexpr int largest_side = 65'535;
constexpr std::int64_t largest_virtual_side = std::int64_t{1} << 28;  // before the crop; nothing of that size is made

void check_image(const Image& image, const char* tag) {
  const auto side = [](int value) { return static_cast<std::size_t>(std::max(value, 0)); };
  check(image.width > 0 && image.height > 0, tag, "image must have pixels, got ", image.width, " x ", image.height);
  check(image.pixels.size() == 3 * side(image.width) * side(image.height), tag, "pixels of a ", image.width, " x ",
        image.height, " image must be 3 * width * height bytes, got ", image.pixels.size());
}

void check_side(int value, const char* tag, const char* name) {
  check(value >= 1 && value <= largest_side, tag, name, " must be from 1 to ", largest_side, ", got ", value);
}

// ---- preprocessor_config.json

/// One key of the file; what is null counts as missing.
struct Key {
  const json& object;
  const std::string& file;
  const char* name;

  const json* find() const {
    const auto entry = object.find(name);
    return entry == object.end() || entry->is_null() ? nullptr : &*entry;
  }
  [[noreturn]] void wrong(const char* expected, const json& found) const {
    fail("image.Preprocess", "'", name, "' must be ", expected, ", got ", io::brief(found), " in '", file, "'");
  }
  int side(const json& value) const {
    if (!value.is_number_integer() || value < 1 || value > largest_side) wrong("integers from 1 to 65,535", value);
    return value.get<int>();
  }
};

void read_flag(const Key& key, bool& flag) {
  const json* value = key.find();
  if (value == nullptr) return;
  if (!value->is_boolean()) key.wrong("true or false", *value);
  flag = value->get<bool>();
}

void read_size(const Key& key, Preprocess& config) {
  const json* value = key.find();
  if (value == nullptr) return;
  const bool both = value->is_object() && value->contains("height") && value->contains("width");
  if (value->is_number()) {
    config.shortest_edge = key.side(*value);
  } else if (value->is_object() && value->size() == 1 && value->contains("shortest_edge")) {
    config.shortest_edge = key.side(value->at("shortest_edge"));
  } else if (both && value->size() == 2) {
    config.shortest_edge = 0;
    config.resize_height = key.side(value->at("height"));
    config.resize_width = key.side(value->at("width"));
  } else {
    key.wrong("an integer, {\"shortest_edge\"} or {\"height\", \"width\"}", *value);
  }
}

void read_crop(const Key& key, Preprocess& config) {
  const json* value = key.find();
  if (value == nullptr) return;
  if (value->is_number()) {
    config.crop_height = config.crop_width = key.side(*value);
  } else if (value->is_object() && value->size() == 2 && value->contains("height") && value->contains("width")) {
    config.crop_height = key.side(value->at("height"));
    config.crop_width = key.side(value->at("width"));
  } else {
    key.wrong("an integer or {\"height\", \"width\"}", *value);
  }
}

void read_resample(const Key& key, Resample& resample) {
  const json* value = key.find();
  if (value == nullptr) return;
  if (!value->is_number_integer() || *value < 0 || *value > 5) key.wrong("an integer from 0 to 5", *value);
  resample = static_cast<Resample>(value->get<int>());
}

void read_factor(const Key& key, double& factor) {
  const json* value = key.find();
  if (value == nullptr) return;
  if (!value->is_number() || !std::isfinite(value->get<double>())) key.wrong("a finite number", *value);
  factor = value->get<double>();
}

/// Three numbers, or one for all channels. `positive` is asked of what we divide by.
void read_channels(const Key& key, bool positive, std::array<float, 3>& channels) {
  const json* value = key.find();
  if (value == nullptr) return;
  if (!value->is_number() && !(value->is_array() && value->size() == 3)) key.wrong("three numbers", *value);
  for (std::size_t c = 0; c < 3; ++c) {
    const json& entry = value->is_array() ? value->at(c) : *value;
    const auto number = entry.is_number() ? entry.get<float>() : std::numeric_limits<float>::quiet_NaN();
    if (!std::isfinite(number) || (positive && number <= 0.0F)) key.wrong("three finite numbers, std above 0", *value);
    channels[c] = number;
  }
}

// ---- geometry

struct Size {
  std::int64_t width;
  std::int64_t height;
};

/// Hugging Face's rule: the shorter side becomes shortest_edge, the longer one is cut to an integer.
Size resized(int width, int height, const Preprocess& config) {
  if (!config.do_resize) return {width, height};
  if (config.shortest_edge <= 0) return {config.resize_width, config.resize_height};
  const std::int64_t edge = config.shortest_edge;
  const auto [shorter, longer] = std::minmax(width, height);
  const auto scaled = static_cast<std::int64_t>(static_cast<double>(edge * longer) / static_cast<double>(shorter));
  return width <= height ? Size{edge, scaled} : Size{scaled, edge};
}

/// Where one side of the image lands in the crop: `length` pixels from `source` on go to `target` on; zeros elsewhere.
struct Overlap {
  std::int64_t source;
  int target;
  int length;
};

Overlap overlap(std::int64_t size, int crop) {
  if (size >= crop) return {(size - crop) / 2, 0, crop};
  return {0, (crop - static_cast<int>(size) + 1) / 2, static_cast<int>(size)};
}

/// What each byte of a channel becomes: float64 for the rescaling, float32 for the rest, as NumPy computes it there.
std::array<float, 256> channel_values(const Preprocess& config, std::size_t channel) {
  std::array<float, 256> values{};
  for (int byte = 0; byte < 256; ++byte) {
    auto value = static_cast<float>(config.do_rescale ? byte * config.rescale_factor : byte);
    if (config.do_normalize) value = (value - config.mean[channel]) / config.std[channel];
    values[static_cast<std::size_t>(byte)] = value;
  }
  return values;
}

/// Writes one channel of the crop: the pixels where they land, the value of byte 0 around them.
void write_channel(const Image& pixels, const std::array<float, 256>& values, std::size_t channel, const Overlap& x,
                   const Overlap& y, std::size_t width, std::span<float> plane) {
  std::fill(plane.begin(), plane.end(), values[0]);
  const std::uint8_t* from = pixels.pixels.data() + channel;
  for (int row = 0; row < y.length; ++row) {
    float* to = plane.data() + static_cast<std::size_t>(y.target + row) * width + x.target;
    for (int column = 0; column < x.length; ++column, from += 3) to[column] = values[*from];
  }
}

}  // namespace

Image resize(const Image& image, int width, int height, Resample filter) {
  constexpr const char* tag = "image.resize";
  check_image(image, tag);
  check_side(width, tag, "width");
  check_side(height, tag, "height");
  return resize_region(image, width, height, filter, {0, 0, width, height});
}

Preprocess Preprocess::load(const std::filesystem::path& file) {
  const std::string name = file.string();
  const json object = io::read_json_object(file, "image.Preprocess", std::size_t{1} << 20);
  Preprocess config;
  bool convert_rgb = true;  // images are always RGB here
  read_flag({object, name, "do_convert_rgb"}, convert_rgb);
  read_flag({object, name, "do_resize"}, config.do_resize);
  read_flag({object, name, "do_center_crop"}, config.do_center_crop);
  read_flag({object, name, "do_rescale"}, config.do_rescale);
  read_flag({object, name, "do_normalize"}, config.do_normalize);
  read_size({object, name, "size"}, config);
  read_crop({object, name, "crop_size"}, config);
  read_resample({object, name, "resample"}, config.resample);
  read_factor({object, name, "rescale_factor"}, config.rescale_factor);
  read_channels({object, name, "image_mean"}, false, config.mean);
  read_channels({object, name, "image_std"}, true, config.std);
  return config;
}

std::array<int, 2> Preprocess::output_size(int width, int height) const {
  constexpr const char* tag = "image.output_size";
  check(width >= 1 && height >= 1, tag, "image must have pixels, got ", width, " x ", height);
  const Size size = do_center_crop ? Size{crop_width, crop_height} : resized(width, height, *this);
  const auto [smaller, larger] = std::minmax(size.width, size.height);
  check(smaller >= 1 && larger <= largest_side, tag, "a ", width, " x ", height, " image becomes ", size.width, " x ",
        size.height, ", sides must be from 1 to ", largest_side);
  return {static_cast<int>(size.width), static_cast<int>(size.height)};
}

void preprocess(const Image& image, const Preprocess& config, std::span<float> out) {
  constexpr const char* tag = "image.preprocess";
  check_image(image, tag);
  const auto [width, height] = config.output_size(image.width, image.height);
  const std::size_t plane = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  check(out.size() == 3 * plane, tag, "out must hold 3 x ", height, " x ", width, " values, got ", out.size());
  const Size size = resized(image.width, image.height, config);
  check(std::min(size.width, size.height) >= 1 && std::max(size.width, size.height) <= largest_virtual_side, tag, "a ",
        image.width, " x ", image.height, " image cannot become ", size.width, " x ", size.height);
  const Overlap x = overlap(size.width, width);
  const Overlap y = overlap(size.height, height);
  const Image pixels =
      resize_region(image, size.width, size.height, config.resample, {x.source, y.source, x.length, y.length});
  for (std::size_t c = 0; c < 3; ++c) {
    write_channel(pixels, channel_values(config, c), c, x, y, static_cast<std::size_t>(width),
                  out.subspan(c * plane, plane));
  }
}

}  // namespace reco
