// SPDX-License-Identifier: Apache-2.0
// What needs no reference; tests/python/test_image.py compares every byte with PIL.
#include "reco/image.h"

#include <gtest/gtest.h>
#include <png.h>
#include <webp/encode.h>

#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "image_resize.h"
#include "reco/error.h"

// After <cstdio>, whose names it uses without including it.
#include <jpeglib.h>

namespace reco {
namespace {

namespace fs = std::filesystem;

Image gradient(int width, int height) {
  Image image{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (const int value : {x * 255 / width, y * 255 / height, (x + y) % 256}) {
        image.pixels.push_back(static_cast<std::uint8_t>(value));
      }
    }
  }
  return image;
}

std::span<const std::byte> view(const std::string& data) { return std::as_bytes(std::span(data)); }

std::string png_file(const Image& image) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  std::string data(2 * image.pixels.size() + 1000, '\0');
  png_alloc_size_t size = data.size();
  png_image_write_to_memory(&header, data.data(), &size, 0, image.pixels.data(), 0, nullptr);
  data.resize(size);
  return data;
}

std::string webp_file(const Image& image) {
  std::uint8_t* bytes = nullptr;
  const std::size_t size =
      WebPEncodeLosslessRGB(image.pixels.data(), image.width, image.height, 3 * image.width, &bytes);
  std::string data(reinterpret_cast<char*>(bytes), size);
  WebPFree(bytes);
  return data;
}

std::string jpeg_file(const Image& image) {
  jpeg_compress_struct state{};
  jpeg_error_mgr errors{};
  state.err = jpeg_std_error(&errors);
  jpeg_create_compress(&state);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&state, &bytes, &size);
  state.image_width = static_cast<JDIMENSION>(image.width);
  state.image_height = static_cast<JDIMENSION>(image.height);
  state.input_components = 3;
  state.in_color_space = JCS_RGB;
  jpeg_set_defaults(&state);
  jpeg_set_quality(&state, 95, TRUE);
  jpeg_start_compress(&state, TRUE);
  for (int y = 0; y < image.height; ++y) {
    auto* row = const_cast<std::uint8_t*>(image.pixels.data()) + std::size_t{3} * image.width * y;
    jpeg_write_scanlines(&state, &row, 1);
  }
  jpeg_finish_compress(&state);
  jpeg_destroy_compress(&state);
  std::string data(reinterpret_cast<char*>(bytes), size);
  std::free(bytes);
  return data;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Image, DecodesWhatIsLossless) {
  const Image image = gradient(37, 23);
  for (const std::string& file : {png_file(image), webp_file(image)}) {
    const Image decoded = decode_image(view(file));
    EXPECT_EQ(decoded.width, 37);
    EXPECT_EQ(decoded.height, 23);
    EXPECT_EQ(decoded.pixels, image.pixels);
  }
}

TEST(Image, DecodesJpeg) {
  const Image image = gradient(64, 48);
  const Image decoded = decode_image(view(jpeg_file(image)));
  ASSERT_EQ(decoded.pixels.size(), image.pixels.size());
  double error = 0;
  for (std::size_t i = 0; i < image.pixels.size(); ++i) error += std::abs(image.pixels[i] - decoded.pixels[i]);
  EXPECT_LT(error / static_cast<double>(image.pixels.size()), 3.0);
}

TEST(Image, EveryTruncationAndManyDamagesGiveAnErrorOrAnImage) {
  const Image image = gradient(40, 30);
  unsigned random = 1;
  for (const std::string& file : {png_file(image), webp_file(image), jpeg_file(image)}) {
    for (std::size_t length = 0; length < file.size(); ++length) {
      const std::string part = file.substr(0, length);
      try {
        EXPECT_EQ(decode_image(view(part)).width, 40);  // only what ends the file may be missing
        EXPECT_GT(length + 20, file.size());
      } catch (const Error& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with("[image.decode_image]")) << error.what();
      }
    }
    for (int round = 0; round < 500; ++round) {
      std::string damaged = file;
      for (int i = 0; i < 3; ++i) {
        random = random * 1664525 + 1013904223;
        damaged[random % damaged.size()] = static_cast<char>(random >> 24);
      }
      message_of([&] { decode_image(view(damaged), "damaged", 1 << 20); });
    }
  }
}

TEST(Image, RefusesTooManyPixels) {
  const std::string file = png_file(gradient(20, 10));
  EXPECT_EQ(message_of([&] { decode_image(view(file), "cat", 199); }),
            "[image.decode_image] 'cat' must have at most 199 pixels, has 20 x 10");
  EXPECT_EQ(decode_image(view(file), "cat", 200).height, 10);
}

TEST(Image, NamesTheFileThatCannotBeRead) {
  const fs::path path = fs::path(::testing::TempDir()) / "reco_image_test.png";
  std::ofstream(path) << "not an image";
  EXPECT_NE(message_of([&] { read_image(path); }).find(path.string()), std::string::npos);
  std::ofstream(path, std::ios::binary) << png_file(gradient(3, 2));
  EXPECT_EQ(read_image(path).pixels, gradient(3, 2).pixels);
  fs::remove(path);
  EXPECT_NE(message_of([&] { read_image(path); }).find("No such file"), std::string::npos);
}

TEST(Image, ResizeKeepsConstantsAndSizes) {
  for (const int filter : {0, 1, 2, 3, 4, 5}) {
    for (const auto& [width, height] : {std::pair{1, 1}, {7, 3}, {16, 48}, {200, 5}}) {
      const Image gray{11, 13, std::vector<std::uint8_t>(3 * 11 * 13, 93)};
      const Image resized = resize(gray, width, height, static_cast<Resample>(filter));
      EXPECT_EQ(resized.width, width);
      EXPECT_EQ(resized.height, height);
      EXPECT_EQ(resized.pixels, std::vector<std::uint8_t>(std::size_t{3} * width * height, 93)) << filter;
    }
  }
  const Image image = gradient(31, 17);
  EXPECT_EQ(resize(image, 31, 17, Resample::lanczos).pixels, image.pixels);
}

TEST(Image, ResizeByHand) {
  const Image image{2, 1, {0, 10, 20, 200, 110, 21}};
  EXPECT_EQ(resize(image, 1, 1, Resample::box).pixels, (std::vector<std::uint8_t>{100, 60, 21}));
  EXPECT_EQ(resize(image, 4, 1, Resample::nearest).pixels,
            (std::vector<std::uint8_t>{0, 10, 20, 0, 10, 20, 200, 110, 21, 200, 110, 21}));
  EXPECT_EQ(resize(image, 4, 1, Resample::bilinear).pixels,
            (std::vector<std::uint8_t>{0, 10, 20, 50, 35, 20, 150, 85, 21, 200, 110, 21}));
}

TEST(Image, ARegionIsThatPartOfTheWhole) {
  const Image image = gradient(90, 70);
  for (const int filter : {0, 1, 2, 3, 4, 5}) {
    for (const auto& [width, height] : {std::pair{40, 30}, {120, 100}, {90, 20}, {33, 70}, {88, 12}}) {
      const Image whole = resize(image, width, height, static_cast<Resample>(filter));
      const Region region{7, 5, 21, 7};
      const Image part = resize_region(image, width, height, static_cast<Resample>(filter), region);
      for (int y = 0; y < region.height; ++y) {
        const auto* row = whole.pixels.data() + 3 * ((y + region.top) * width + region.left);
        EXPECT_TRUE(std::equal(row, row + 3 * region.width, part.pixels.data() + 3 * y * region.width)) << filter;
      }
    }
  }
}

TEST(Image, ResizeRefusesNonsense) {
  const Image image = gradient(4, 4);
  EXPECT_THROW(resize(image, 0, 1, Resample::box), Error);
  EXPECT_THROW(resize(image, 1, 65'536, Resample::box), Error);
  EXPECT_THROW(resize(image, 2, 2, static_cast<Resample>(6)), Error);
  EXPECT_THROW(resize(Image{}, 2, 2, Resample::box), Error);
  EXPECT_THROW(resize(Image{2, 2, {1, 2, 3}}, 2, 2, Resample::box), Error);
  EXPECT_THROW(resize(Image{-2, -2, std::vector<std::uint8_t>(12)}, 2, 2, Resample::box), Error);
}

TEST(Image, PreprocessCropsAndPads) {
  Preprocess config;
  config.do_resize = config.do_normalize = config.do_rescale = false;
  config.crop_width = 3;
  config.crop_height = 2;
  const Image image{1, 4, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
  std::vector<float> out(18, -1.0F);
  preprocess(image, config, out);
  EXPECT_EQ(out, (std::vector<float>{0, 4, 0, 0, 7, 0, 0, 5, 0, 0, 8, 0, 0, 6, 0, 0, 9, 0}));
  std::vector<float> small(17);
  EXPECT_THROW(preprocess(image, config, small), Error);
  config.do_center_crop = false;
  EXPECT_EQ(config.output_size(5, 9), (std::array{5, 9}));
  config.do_resize = true;
  EXPECT_EQ(config.output_size(100, 150), (std::array{224, 336}));
  EXPECT_THROW(config.output_size(1, 60'000), Error);
}

TEST(Image, PreprocessNormalises) {
  Preprocess config;
  config.shortest_edge = config.crop_width = config.crop_height = 1;
  std::vector<float> out(3);
  preprocess({1, 1, {0, 128, 255}}, config, out);
  EXPECT_EQ(out[0], (0.0F - config.mean[0]) / config.std[0]);
  EXPECT_EQ(out[1], (static_cast<float>(128 / 255.0) - config.mean[1]) / config.std[1]);
  EXPECT_EQ(out[2], (1.0F - config.mean[2]) / config.std[2]);
}

}  // namespace
}  // namespace reco
