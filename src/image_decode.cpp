// SPDX-License-Identifier: Apache-2.0
// JPEG, PNG and WebP with the bits that PIL gives, in RGB or in the mode in which it opens a file. libjpeg and libpng
// report errors by longjmp: whatever calls them runs inside run(), and owns nothing that would need a destructor there.
#include <png.h>
#include <webp/decode.h>

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string_view>
#include <utility>

#include "io/file.h"
#include "reco/error.h"
#include "reco/image.h"
#include "reco/interrupt.h"

// After <cstdio>, whose names it uses without including it.
#include <jerror.h>
#include <jpeglib.h>

namespace reco {

namespace {

constexpr const char* tag = "image.decode_image";

using Data = std::span<const std::byte>;

const std::uint8_t* bytes_of(Data data) { return reinterpret_cast<const std::uint8_t*>(data.data()); }

/// An image of this size, after the check against decompression bombs.
Image make_image(std::uint64_t width, std::uint64_t height, ImageMode mode, std::int64_t max_pixels,
                 const std::string& name) {
  check(width > 0 && height > 0, tag, "'", name, "' has no pixels: ", width, " x ", height);
  check(max_pixels > 0 && width <= static_cast<std::uint64_t>(max_pixels) / height, tag, "'", name,
        "' must have at most ", max_pixels, " pixels, has ", width, " x ", height);
  return new_image(static_cast<int>(width), static_cast<int>(height), mode);
}

std::size_t row_bytes(const Image& image) { return static_cast<std::size_t>(image.width) * image.pixel_size(); }

std::uint8_t* row_of(Image& image, std::size_t y) { return image.pixels.data() + y * row_bytes(image); }

// ---- JPEG

class Jpeg {
 public:
  Jpeg(Data file, const std::string& name) : name_(name), file_(file) {
    state_.err = jpeg_std_error(&errors_.base);
    errors_.base.error_exit = [](j_common_ptr state) {
      auto* errors = reinterpret_cast<Errors*>(state->err);
      state->err->format_message(state, errors->message);
      std::longjmp(errors->jump, 1);
    };
    errors_.base.emit_message = on_message;
    progress_.progress_monitor = on_progress;
  }
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;
  ~Jpeg() { jpeg_destroy_decompress(&state_); }

  Image decode(std::int64_t max_pixels) {
    run([&] { read_header(); });
    const int components = state_.num_components;
    check(components == 1 || components == 3 || components == 4, tag, "'", name_,
          "' must have 1, 3 or 4 components, has ", components);
    Image image = make_image(state_.image_width, state_.image_height,
                             components == 4 ? ImageMode::cmyk : ImageMode::rgb, max_pixels, name_);
    state_.out_color_space = components == 4 ? JCS_CMYK : JCS_RGB;
    run([&] { read_lines(image); });
    // Adobe stores inverted inks, and PIL takes every CMYK JPEG for Adobe's.
    if (components == 4) std::transform(image.pixels.begin(), image.pixels.end(), image.pixels.begin(), std::bit_not());
    return image;
  }

 private:
  struct Errors {
    jpeg_error_mgr base;
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
  };

  /// Warnings concern damage that libjpeg skips, as PIL lets it; the end of the data before the end of the image does
  /// not.
  static void on_message(j_common_ptr state, int level) {
    if (level < 0 && state->err->msg_code == JWRN_JPEG_EOF) state->err->error_exit(state);
  }

  /// Thousands of scans over a large image are an attack.
  static void on_progress(j_common_ptr state) {
    auto* self = reinterpret_cast<j_decompress_ptr>(state);
    auto* errors = reinterpret_cast<Errors*>(state->err);
    if (interrupted()) std::longjmp(errors->jump, 1);
    if (self->input_scan_number <= 1000) return;
    std::strcpy(errors->message, "more than 1,000 scans");
    std::longjmp(errors->jump, 1);
  }

  template <typename Step>
  void run(const Step& step) {
    if (setjmp(errors_.jump) != 0) {
      check_interrupt();
      fail(tag, "cannot read the JPEG '", name_, "': ", errors_.message);
    }
    step();
  }

  void read_header() {
    jpeg_create_decompress(&state_);  // clears all but the error handler
    state_.progress = &progress_;
    jpeg_mem_src(&state_, bytes_of(file_), static_cast<unsigned long>(file_.size()));
    jpeg_read_header(&state_, TRUE);
  }

  void read_lines(Image& image) {
    jpeg_start_decompress(&state_);
    while (state_.output_scanline < state_.output_height) {
      std::uint8_t* row = row_of(image, state_.output_scanline);
      jpeg_read_scanlines(&state_, &row, 1);
    }
    jpeg_finish_decompress(&state_);
  }

  const std::string& name_;
  Data file_;
  Errors errors_{};
  jpeg_progress_mgr progress_{};
  jpeg_decompress_struct state_{};
};

// ---- PNG

class Png {
 public:
  Png(Data file, const std::string& name) : name_(name), rest_(file) {
    png_ = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, this,
        [](png_structp png, png_const_charp text) {
          auto* self = static_cast<Png*>(png_get_error_ptr(png));
          std::strncpy(self->message_, text, sizeof(self->message_) - 1);
          std::longjmp(self->jump_, 1);
        },
        [](png_structp, png_const_charp) {});
    info_ = png_ != nullptr ? png_create_info_struct(png_) : nullptr;
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      fail(tag, "libpng cannot start for '", name, "'");
    }
  }
  Png(const Png&) = delete;
  Png& operator=(const Png&) = delete;
  ~Png() { png_destroy_read_struct(&png_, &info_, nullptr); }

  Image decode(std::int64_t max_pixels, bool rgb) {
    run([&] {
      png_set_read_fn(png_, this, [](png_structp png, png_bytep out, std::size_t size) {
        auto* self = static_cast<Png*>(png_get_io_ptr(png));
        if (size > self->rest_.size()) png_error(png, "the file ends too early");
        std::memcpy(out, self->rest_.data(), size);
        self->rest_ = self->rest_.subspan(size);
      });
      png_read_info(png_, info_);
    });
    const Layout layout = layout_of(png_get_color_type(png_, info_), png_get_bit_depth(png_, info_), rgb);
    Image image = make_image(png_get_image_width(png_, info_), png_get_image_height(png_, info_), mode_of(layout),
                             max_pixels, name_);
    run([&] {
      expand_to(layout);
      read_rows(image);
    });
    if (layout == Layout::palette) image.palette = colours();
    if (layout == Layout::bilevel) image.palette = black_and_white();
    return image;
  }

 private:
  /// What the rows are read as.
  enum class Layout { rgb, rgba, gray16, palette, bilevel };

  /// Of 16-bit gray all bits count, since PIL cuts it off at 255 (but keeps the high byte of 16-bit colours).
  static Layout layout_of(int color, int depth, bool rgb) {
    if (color == PNG_COLOR_TYPE_GRAY && depth == 16) return Layout::gray16;
    if (rgb) return Layout::rgb;
    if (color == PNG_COLOR_TYPE_PALETTE) return Layout::palette;
    if (color == PNG_COLOR_TYPE_GRAY && depth == 1) return Layout::bilevel;
    return (color & PNG_COLOR_MASK_ALPHA) != 0 ? Layout::rgba : Layout::rgb;
  }

  static ImageMode mode_of(Layout layout) {
    if (layout == Layout::rgba) return ImageMode::rgba;
    if (layout == Layout::gray16) return ImageMode::gray16;
    return layout == Layout::rgb ? ImageMode::rgb : ImageMode::palette;
  }

  template <typename Step>
  void run(const Step& step) {
    if (setjmp(jump_) != 0) fail(tag, "cannot read the PNG '", name_, "': ", message_);
    step();
  }

  void expand_to(Layout layout) {
    if (layout == Layout::gray16) return png_set_swap(png_);
    if (layout == Layout::palette || layout == Layout::bilevel) return png_set_packing(png_);
    png_set_strip_16(png_);
    png_set_palette_to_rgb(png_);
    png_set_expand_gray_1_2_4_to_8(png_);
    png_set_gray_to_rgb(png_);
    if (layout == Layout::rgb) png_set_strip_alpha(png_);
  }

  void read_rows(Image& image) {
    const int passes = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    if (png_get_rowbytes(png_, info_) != row_bytes(image)) png_error(png_, "rows of an unexpected length");
    for (int pass = 0; pass < passes; ++pass) {
      for (int y = 0; y < image.height; ++y) {
        check_interrupt();
        png_read_row(png_, row_of(image, static_cast<std::size_t>(y)), nullptr);
      }
    }
  }

  /// The file's palette; black follows its end.
  std::vector<std::uint8_t> colours() {
    std::vector<std::uint8_t> bytes(std::size_t{3} * 256);
    png_colorp entries = nullptr;
    int count = 0;
    png_get_PLTE(png_, info_, &entries, &count);
    for (int i = 0; i < std::min(count, 256); ++i) {
      bytes[3 * i] = entries[i].red, bytes[3 * i + 1] = entries[i].green, bytes[3 * i + 2] = entries[i].blue;
    }
    return bytes;
  }

  /// PIL's mode 1: all but 0 is white.
  static std::vector<std::uint8_t> black_and_white() {
    std::vector<std::uint8_t> bytes(std::size_t{3} * 256, 255);
    std::fill_n(bytes.begin(), 3, std::uint8_t{0});
    return bytes;
  }

  const std::string& name_;
  Data rest_;
  std::jmp_buf jump_{};
  char message_[128] = {};
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

// ---- WebP

std::uint32_t little_endian(Data data, std::size_t at, int bytes) {
  std::uint32_t value = 0;
  for (int i = bytes - 1; i >= 0; --i) value = value << 8 | std::to_integer<std::uint32_t>(data[at + i]);
  return value;
}

/// The first animation frame ("ANMF" chunk) and where it lies on the canvas.
struct Frame {
  std::size_t x;
  std::size_t y;
  Data data;
};

Frame first_frame(Data file, const std::string& name) {
  constexpr std::size_t chunk_header = 8;
  constexpr std::size_t frame_header = 16;
  for (std::size_t at = 12; file.size() - at >= chunk_header;) {
    const std::size_t size = little_endian(file, at + 4, 4);
    const Data body = file.subspan(at + chunk_header);
    if (size > body.size()) break;
    if (std::memcmp(file.data() + at, "ANMF", 4) == 0 && size >= frame_header) {
      return {std::size_t{2} * little_endian(body, 0, 3), std::size_t{2} * little_endian(body, 3, 3),
              body.subspan(frame_header, size - frame_header)};
    }
    at += chunk_header + std::min(size + size % 2, body.size());
  }
  fail(tag, "the animated WebP '", name, "' has no complete frame");
}

/// Decodes one still picture, whose features are known, to (x, y) of the image.
void decode_picture(Data picture, const Frame& place, const WebPBitstreamFeatures& features, Image& image,
                    const std::string& name) {
  const auto width = static_cast<std::size_t>(features.width);
  const auto height = static_cast<std::size_t>(features.height);
  const auto fits = [](std::size_t start, std::size_t length, int all) {
    return start + length <= static_cast<std::size_t>(all);
  };
  check(fits(place.x, width, image.width) && fits(place.y, height, image.height), tag, "the WebP '", name,
        "' has a frame of ", width, " x ", height, " at ", place.x, ", ", place.y, " outside its ", image.width, " x ",
        image.height, " canvas");
  const auto decode = image.mode == ImageMode::rgba ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
  const auto stride = static_cast<int>(row_bytes(image));
  std::uint8_t* out = row_of(image, place.y) + image.pixel_size() * place.x;
  const auto room = image.pixels.size() - static_cast<std::size_t>(out - image.pixels.data());
  check(decode(bytes_of(picture), picture.size(), out, room, stride) != nullptr, tag, "cannot read the WebP '", name,
        "': corrupt or truncated");
}

WebPBitstreamFeatures webp_features(Data data, const std::string& name) {
  WebPBitstreamFeatures features{};
  const auto status = WebPGetFeatures(bytes_of(data), data.size(), &features);
  check(status == VP8_STATUS_OK, tag, "cannot read the WebP '", name,
        "': ", status == VP8_STATUS_NOT_ENOUGH_DATA ? "truncated" : "corrupt", " header");
  return features;
}

Image decode_webp(Data file, const std::string& name, std::int64_t max_pixels, bool rgb) {
  const WebPBitstreamFeatures features = webp_features(file, name);
  const ImageMode mode = features.has_alpha != 0 && !rgb ? ImageMode::rgba : ImageMode::rgb;
  Image image = make_image(static_cast<std::uint64_t>(features.width), static_cast<std::uint64_t>(features.height),
                           mode, max_pixels, name);
  if (features.has_animation == 0) {
    decode_picture(file, {0, 0, file}, features, image, name);
  } else {
    const Frame frame = first_frame(file, name);
    std::fill(image.pixels.begin(), image.pixels.end(), std::uint8_t{0});  // which the frame need not cover
    decode_picture(frame.data, frame, webp_features(frame.data, name), image, name);
  }
  return image;
}

bool starts_with(Data file, std::string_view magic, std::size_t at = 0) {
  return file.size() >= at + magic.size() && std::memcmp(file.data() + at, magic.data(), magic.size()) == 0;
}

Image decode(Data file, const std::string& name, std::int64_t max_pixels, bool rgb) {
  if (starts_with(file, "\xFF\xD8\xFF")) return Jpeg(file, name).decode(max_pixels);
  if (starts_with(file, "\x89PNG\r\n\x1A\n")) return Png(file, name).decode(max_pixels, rgb);
  if (starts_with(file, "RIFF") && starts_with(file, "WEBP", 8)) return decode_webp(file, name, max_pixels, rgb);
  fail(tag, "'", name, "' must be a JPEG, PNG or WebP file, found ", file.size(), " bytes of another format");
}

}  // namespace

Image decode_image(Data file, const std::string& name, std::int64_t max_pixels, bool rgb) {
  Image image = decode(file, name, max_pixels, rgb);
  if (rgb) return to_rgb(std::move(image));
  return image;
}

Image read_image(const std::filesystem::path& path, bool rgb) {
  const std::string file = io::read_file(path);
  return decode_image(std::as_bytes(std::span(file)), path.string(), max_image_pixels, rgb);
}

}  // namespace reco
