// SPDX-License-Identifier: Apache-2.0
#include "reco/image.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "image_mode.h"
#include "image_resize.h"
#include "io/json.h"
#include "model_format.h"
#include "reco/error.h"

namespace reco {

namespace {

using nlohmann::json;

constexpr int largest_side = 65'535;
constexpr std::int64_t largest_virtual_side = std::int64_t{1} << 28;  // before the crop; nothing of that size is made

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

/// SigLIP's where the file says so.
Preprocess defaults(const Key& type) {
  Preprocess config;
  const json* name = type.find();
  if (name == nullptr || !name->is_string()) return config;
  if (!name->get_ref<const std::string&>().starts_with("SiglipImageProcessor")) return config;
  config.shortest_edge = 0, config.resize_width = config.resize_height = 224;
  config.do_center_crop = false;
  config.mean = config.std = {0.5F, 0.5F, 0.5F};
  return config;
}

json read_file(const std::filesystem::path& file) {
  return io::read_json_object(file, "image.Preprocess", std::size_t{1} << 20);
}

/// The settings and the name of their file.
std::pair<json, std::string> read_settings(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  const bool folder = fs::is_directory(path);
  const fs::path whole = folder ? path / "processor_config.json" : path;  // of all of a processor's parts
  if (!folder || fs::exists(whole)) {
    json object = read_file(whole);
    const auto part = object.find("image_processor");
    if (part != object.end() && part->is_object()) return {std::move(*part), whole.string()};
    if (!folder) return {std::move(object), whole.string()};
  }
  const fs::path file = path / "preprocessor_config.json";
  return {read_file(file), file.string()};
}

// ---- open_clip_config.json

/// The object of a key; Error if it is none.
const json& child(const json& object, const char* name, const std::string& file) {
  const auto entry = object.find(name);
  const bool found = entry != object.end() && entry->is_object();
  check(found, "image.Preprocess", "'", name, "' must be an object in '", file, "'");
  return *entry;
}

/// One of the names; its place in the list.
std::size_t read_choice(const Key& key, const char* expected, std::initializer_list<std::string_view> names) {
  const json* value = key.find();
  if (value == nullptr) return 0;
  const auto found =
      value->is_string() ? std::find(names.begin(), names.end(), value->get_ref<const std::string&>()) : names.end();
  if (found == names.end()) key.wrong(expected, *value);
  return static_cast<std::size_t>(found - names.begin());
}

/// image_size: a number, or height and width.
void read_open_clip_size(const Key& key, Preprocess& config) {
  const json* value = key.find();
  if (value == nullptr) return;
  const bool both = value->is_array() && value->size() == 2;
  config.crop_height = key.side(both ? value->at(0) : *value);
  config.crop_width = key.side(both ? value->at(1) : *value);
}

void read_fill(const Key& key, int& fill) {
  const json* value = key.find();
  if (value == nullptr) return;
  if (!value->is_number_integer() || *value < 0 || *value > 255) key.wrong("an integer from 0 to 255", *value);
  fill = value->get<int>();
}

/// What open_clip's image_transform() makes of the settings, for inference.
Preprocess load_open_clip(const std::filesystem::path& path) {
  const std::string file = path.string();
  const json content = read_file(path);
  Preprocess config;
  read_open_clip_size({child(child(content, "model_cfg", file), "vision_cfg", file), file, "image_size"}, config);
  static const json none = json::object();
  const json& object = content.contains("preprocess_cfg") ? child(content, "preprocess_cfg", file) : none;
  read_channels({object, file, "mean"}, false, config.mean);
  read_channels({object, file, "std"}, true, config.std);
  read_fill({object, file, "fill_color"}, config.fill);
  const auto filter =
      read_choice({object, file, "interpolation"}, "bicubic, bilinear or random", {"bicubic", "bilinear", "random"});
  config.resample = filter == 1 ? Resample::bilinear : Resample::bicubic;
  const auto mode =
      read_choice({object, file, "resize_mode"}, "shortest, longest or squash", {"shortest", "longest", "squash"});
  const bool shortest = mode == 0 && config.crop_width == config.crop_height;
  config.shortest_edge = shortest ? config.crop_width : 0;
  config.resize_width = config.crop_width, config.resize_height = config.crop_height;
  config.fit = std::array{Fit::around, Fit::inside, Fit::stretch}[mode];
  if (mode == 0 && !shortest) config.resample = Resample::bicubic;  // open_clip forgets the setting there
  config.do_center_crop = mode != 2;
  config.torchvision_crop = true, config.rgb_first = false;
  return config;
}

// ---- geometry

struct Size {
  std::int64_t width;
  std::int64_t height;
};

/// The sides given, or open_clip's rule: what keeps the aspect is rounded half to even.
Size fitted(int width, int height, const Preprocess& config) {
  if (config.fit == Fit::stretch) return {config.resize_width, config.resize_height};
  const double x = static_cast<double>(width) / config.resize_width;
  const double y = static_cast<double>(height) / config.resize_height;
  const double ratio = config.fit == Fit::inside ? std::max(x, y) : std::min(x, y);
  return {static_cast<std::int64_t>(std::nearbyint(width / ratio)),
          static_cast<std::int64_t>(std::nearbyint(height / ratio))};
}

/// Hugging Face's rule: the shorter side becomes shortest_edge, the longer one is cut to an integer.
Size resized(int width, int height, const Preprocess& config) {
  if (!config.do_resize) return {width, height};
  if (config.shortest_edge <= 0) return fitted(width, height, config);
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

Overlap overlap(std::int64_t size, int crop, bool torchvision) {
  if (size >= crop) {
    const std::int64_t margin = size - crop, half = margin / 2;
    return {torchvision && margin % 2 == 1 ? half + half % 2 : half, 0, crop};
  }
  const int margin = crop - static_cast<int>(size);
  return {0, torchvision ? margin / 2 : (margin + 1) / 2, static_cast<int>(size)};
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

/// The fill as RGB. Like open_clip we fill before the conversion: each channel, or the palette's index, has its value.
Image fill_pixel(const Image& image, int fill) {
  const auto byte = static_cast<std::uint8_t>(fill);
  Image pixel{1, 1, std::vector<std::uint8_t>(image.pixel_size(), byte), image.mode, image.palette};
  if (image.mode == ImageMode::gray16) pixel.pixels[1] = 0;
  return to_rgb(std::move(pixel));
}

/// Writes one channel of the crop: the pixels where they land, `plane` keeps what it holds around them.
void write_channel(const Image& pixels, const std::array<float, 256>& values, std::size_t channel, const Overlap& x,
                   const Overlap& y, std::size_t width, std::span<float> plane) {
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

Preprocess Preprocess::load(const std::filesystem::path& path) {
  if (model_format(path) == ModelFormat::open_clip) return load_open_clip(model_folder(path) / open_clip_file);
  const auto [object, name] = read_settings(path);
  Preprocess config = defaults({object, name, "image_processor_type"});
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

std::array<std::int64_t, 2> Preprocess::resized_size(int width, int height) const {
  constexpr const char* tag = "image.resized_size";
  check(width >= 1 && height >= 1, tag, "image must have pixels, got ", width, " x ", height);
  const Size size = resized(width, height, *this);
  check(std::min(size.width, size.height) >= 1 && std::max(size.width, size.height) <= largest_virtual_side, tag, "a ",
        width, " x ", height, " image cannot become ", size.width, " x ", size.height);
  return {size.width, size.height};
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
  if (config.rgb_first && image.mode != ImageMode::rgb) return preprocess(to_rgb(image), config, out);
  const auto [width, height] = config.output_size(image.width, image.height);
  const std::size_t plane = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  check(config.fill >= 0 && config.fill <= 255, tag, "fill must be from 0 to 255, got ", config.fill);
  check(out.size() == 3 * plane, tag, "out must hold 3 x ", height, " x ", width, " values, got ", out.size());
  const auto [resized_width, resized_height] = config.resized_size(image.width, image.height);
  const Overlap x = overlap(resized_width, width, config.torchvision_crop);
  const Overlap y = overlap(resized_height, height, config.torchvision_crop);
  Image pixels = to_rgb(
      resize_region(image, resized_width, resized_height, config.resample, {x.source, y.source, x.length, y.length}));
  const Image fill = fill_pixel(image, config.fill);
  for (std::size_t c = 0; c < 3; ++c) {
    const auto values = channel_values(config, c);
    const std::span<float> to = out.subspan(c * plane, plane);
    std::fill(to.begin(), to.end(), values[fill.pixels[c]]);
    write_channel(pixels, values, c, x, y, static_cast<std::size_t>(width), to);
  }
  recycle(std::move(pixels));
}

}  // namespace reco
