// SPDX-License-Identifier: Apache-2.0
#include "image_mode.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "reco/error.h"

namespace reco {

namespace {

constexpr std::size_t palette_bytes = std::size_t{3} * 256;

/// a * b / 255, rounded.
std::uint8_t share(unsigned a, unsigned b) {
  const unsigned product = a * b + 128;
  return static_cast<std::uint8_t>((product + (product >> 8)) >> 8);
}

void from_cmyk(const std::uint8_t* cmyk, std::uint8_t* rgb) {
  const unsigned light = 255U - cmyk[3];
  for (int c = 0; c < 3; ++c) rgb[c] = static_cast<std::uint8_t>(light - share(cmyk[c], light));
}

/// PIL cuts 16-bit gray off at 255.
void from_gray16(const std::uint8_t* gray, std::uint8_t* rgb) { std::memset(rgb, gray[1] != 0 ? 255 : gray[0], 3); }

/// Every pixel, `size` bytes of them, through `convert`; the image is used up.
template <std::size_t size, typename Convert>
Image converted(Image& image, const Convert& convert) {
  Image out = new_image(image.width, image.height);
  const std::uint8_t* from = image.pixels.data();
  for (auto to = out.pixels.begin(); to != out.pixels.end(); to += 3, from += size) convert(from, &*to);
  recycle(std::move(image));
  return out;
}

}  // namespace

void check_image(const Image& image, const char* tag) {
  const auto side = [](int value) { return static_cast<std::size_t>(std::max(value, 0)); };
  check(image.mode >= ImageMode::rgb && image.mode <= ImageMode::gray16, tag, "image must have one of five modes, got ",
        static_cast<int>(image.mode));
  check(image.width > 0 && image.height > 0, tag, "image must have pixels, got ", image.width, " x ", image.height);
  check(image.pixels.size() == image.pixel_size() * side(image.width) * side(image.height), tag, "pixels of a ",
        image.width, " x ", image.height, " image must be ", image.pixel_size(), " * width * height bytes, got ",
        image.pixels.size());
  check(image.mode != ImageMode::palette || image.palette.size() == palette_bytes, tag, "palette must be ",
        palette_bytes, " bytes, got ", image.palette.size());
}

Image to_rgb(Image image) {
  check_image(image, "image.to_rgb");
  switch (image.mode) {
    case ImageMode::palette:
      return converted<1>(image, [&](const auto* from, auto* to) { std::memcpy(to, &image.palette[3 * *from], 3); });
    case ImageMode::rgba:
      return converted<4>(image, [](const auto* from, auto* to) { std::memcpy(to, from, 3); });
    case ImageMode::cmyk:
      return converted<4>(image, from_cmyk);
    case ImageMode::gray16:
      return converted<2>(image, from_gray16);
    default:
      return image;
  }
}

void premultiply(Image& rgba) {
  for (auto pixel = rgba.pixels.begin(); pixel != rgba.pixels.end(); pixel += 4) {
    for (int c = 0; c < 3; ++c) pixel[c] = share(pixel[c], pixel[3]);
  }
}

void unpremultiply(Image& rgba) {
  for (auto pixel = rgba.pixels.begin(); pixel != rgba.pixels.end(); pixel += 4) {
    const int alpha = pixel[3];
    if (alpha == 0 || alpha == 255) continue;
    for (int c = 0; c < 3; ++c) pixel[c] = static_cast<std::uint8_t>(std::min(255, 255 * pixel[c] / alpha));
  }
}

}  // namespace reco
