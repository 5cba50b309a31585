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
#include <initializer_list>

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

/// Of rows as libpng takes them: 8 bits a sample, or 1 bit packed, or 16.
std::string png_file(int width, int height, int color, int depth, const std::vector<std::uint8_t>& rows) {
  std::string data;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &data,
      [](png_structp self, png_bytep bytes, std::size_t size) {
        static_cast<std::string*>(png_get_io_ptr(self))->append(reinterpret_cast<const char*>(bytes), size);
      },
      [](png_structp) {});
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), depth, color, 0, 0, 0);
  const png_color colours[]{{10, 20, 30}, {40, 50, 60}};
  if (color == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, colours, 2);
  png_write_info(png, info);
  const std::size_t stride = rows.size() / static_cast<std::size_t>(height);
  for (int y = 0; y < height; ++y) png_write_row(png, rows.data() + stride * static_cast<std::size_t>(y));
  png_write_end(png, nullptr);
  png_destroy_write_struct(&png, &info);
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

std::vector<std::uint8_t> palette_of(std::initializer_list<std::uint8_t> colours) {
  std::vector<std::uint8_t> palette(colours);
  palette.resize(std::size_t{3} * 256);
  return palette;
}

Image decode_as_stored(const std::string& file) { return decode_image(view(file), "image", max_image_pixels, false); }

TEST(Image, KeepsTheModeOfAFile) {
  const Image palette = decode_as_stored(png_file(2, 2, PNG_COLOR_TYPE_PALETTE, 1, {0x40, 0x80}));
  EXPECT_EQ(palette.mode, ImageMode::palette);
  EXPECT_EQ(palette.pixels, (std::vector<std::uint8_t>{0, 1, 1, 0}));
  EXPECT_EQ(palette.palette, palette_of({10, 20, 30, 40, 50, 60}));
  const Image bilevel = decode_as_stored(png_file(2, 1, PNG_COLOR_TYPE_GRAY, 1, {0x40}));
  EXPECT_EQ(bilevel.mode, ImageMode::palette);
  EXPECT_EQ(to_rgb(bilevel).pixels, (std::vector<std::uint8_t>{0, 0, 0, 255, 255, 255}));
  const Image gray = decode_as_stored(png_file(2, 1, PNG_COLOR_TYPE_GRAY, 16, {0, 7, 1, 2}));
  EXPECT_EQ(gray.mode, ImageMode::gray16);
  EXPECT_EQ(gray.pixels, (std::vector<std::uint8_t>{7, 0, 2, 1}));
  const Image clear = decode_as_stored(png_file(1, 1, PNG_COLOR_TYPE_RGBA, 8, {1, 2, 3, 4}));
  EXPECT_EQ(clear.mode, ImageMode::rgba);
  EXPECT_EQ(clear.pixels, (std::vector<std::uint8_t>{1, 2, 3, 4}));
  const Image gray_alpha = decode_as_stored(png_file(1, 1, PNG_COLOR_TYPE_GRAY_ALPHA, 8, {5, 6}));
  EXPECT_EQ(gray_alpha.mode, ImageMode::rgba);
  EXPECT_EQ(gray_alpha.pixels, (std::vector<std::uint8_t>{5, 5, 5, 6}));
  for (const std::string& file : {png_file(gradient(5, 4)), webp_file(gradient(5, 4)), jpeg_file(gradient(5, 4))}) {
    const Image rgb = decode_as_stored(file);
    EXPECT_EQ(rgb.mode, ImageMode::rgb);
    EXPECT_EQ(rgb.pixels, decode_image(view(file)).pixels);
  }
}

TEST(Image, MemoryServesTheNextImageOfItsSize) {
  Image image = new_image(400, 300);
  const std::uint8_t* place = image.pixels.data();
  recycle(std::move(image));
  EXPECT_TRUE(image.pixels.empty());
  const Image smaller = new_image(90, 300), same = new_image(390, 300);  // as a quarter would waste the rest
  EXPECT_NE(smaller.pixels.data(), place);
  EXPECT_EQ(same.pixels.data(), place);
  EXPECT_EQ(same.pixels.size(), std::size_t{3} * 390 * 300);
}

TEST(Image, MoreMemoryThanMayWaitIsFreed) {
  std::vector<Image> images;
  for (int i = 0; i < 4; ++i) images.push_back(new_image(3000, 3000));  // 27 MB each
  for (Image& image : images) recycle(std::move(image));
  recycle(new_image(8000, 3000));  // 72 MB
  const Image image = new_image(3000, 3000);
  EXPECT_EQ(image.pixels.size(), 27'000'000U);
  EXPECT_EQ(image.pixels.capacity(), 27'000'000U);
}

TEST(Image, ConvertsToRgbByHand) {
  EXPECT_EQ(to_rgb({1, 1, {1}, ImageMode::palette, palette_of({9, 9, 9, 1, 2, 3})}).pixels,
            (std::vector<std::uint8_t>{1, 2, 3}));
  EXPECT_EQ(to_rgb({1, 1, {1, 2, 3, 0}, ImageMode::rgba}).pixels, (std::vector<std::uint8_t>{1, 2, 3}));
  EXPECT_EQ(to_rgb({1, 1, {0, 255, 51, 55}, ImageMode::cmyk}).pixels, (std::vector<std::uint8_t>{200, 0, 160}));
  EXPECT_EQ(to_rgb({2, 1, {200, 0, 0, 1}, ImageMode::gray16}).pixels,
            (std::vector<std::uint8_t>{200, 200, 200, 255, 255, 255}));
  EXPECT_EQ(to_rgb(gradient(3, 2)).pixels, gradient(3, 2).pixels);
}

TEST(Image, ResizesModesByHand) {
  const Image palette{2, 1, {0, 1}, ImageMode::palette, palette_of({10, 20, 30, 40, 50, 60})};
  const Image wider = resize(palette, 4, 1, Resample::bicubic);  // no colours between those of a palette
  EXPECT_EQ(wider.pixels, (std::vector<std::uint8_t>{0, 0, 1, 1}));
  EXPECT_EQ(wider.palette, palette.palette);
  const Image clear{2, 1, {100, 0, 50, 255, 200, 90, 250, 0}, ImageMode::rgba};
  EXPECT_EQ(resize(clear, 1, 1, Resample::box).pixels, (std::vector<std::uint8_t>{99, 0, 49, 128}));
  EXPECT_EQ(resize(clear, 2, 1, Resample::box).pixels, clear.pixels);  // nothing is weighed where no size changes
  const Image inks{2, 1, {0, 10, 20, 30, 200, 110, 21, 40}, ImageMode::cmyk};
  EXPECT_EQ(resize(inks, 1, 1, Resample::box).pixels, (std::vector<std::uint8_t>{100, 60, 21, 35}));
  const Image gray{2, 1, {1, 2, 4, 4}, ImageMode::gray16};                                 // 513 and 1028
  EXPECT_EQ(resize(gray, 1, 1, Resample::box).pixels, (std::vector<std::uint8_t>{3, 3}));  // 770.5, rounded up
}

TEST(Image, ModesAreResizedBeforeOrAfterTheConversion) {
  Preprocess config;
  config.shortest_edge = config.crop_width = config.crop_height = 1;
  config.resample = Resample::box;
  config.do_rescale = config.do_normalize = false;
  const Image clear{2, 2, {100, 0, 50, 255, 200, 90, 250, 0, 100, 0, 50, 255, 200, 90, 250, 0}, ImageMode::rgba};
  std::vector<float> out(3);
  preprocess(clear, config, out);
  EXPECT_EQ(out, (std::vector<float>{150, 45, 150}));
  config.rgb_first = false;
  preprocess(clear, config, out);
  EXPECT_EQ(out, (std::vector<float>{99, 0, 49}));
}

TEST(Image, AModeNeedsItsBytes) {
  std::vector<float> out(std::size_t{3} * 224 * 224);
  const Image few{1, 1, {1, 2, 3}, ImageMode::cmyk};
  EXPECT_EQ(message_of([&] { preprocess(few, {}, out); }),
            "[image.preprocess] pixels of a 1 x 1 image must be 4 * width * height bytes, got 3");
  EXPECT_THROW(to_rgb(few), Error);
  EXPECT_EQ(message_of([] {
              to_rgb({1, 1, {1}, ImageMode::palette});
            }),
            "[image.to_rgb] palette must be 768 bytes, got 0");
  EXPECT_THROW(to_rgb({1, 1, {1}, static_cast<ImageMode>(9)}), Error);
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
