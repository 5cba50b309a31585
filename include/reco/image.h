// SPDX-License-Identifier: Apache-2.0
/// @file
/// Images as CLIP wants them: decode JPEG, PNG and WebP; resize, crop and normalise exactly as PIL and the Hugging Face
/// CLIPImageProcessor (PIL back end) do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"

namespace reco {

/// What the bytes of a pixel are: PIL's modes RGB, P, RGBA, CMYK and I;16. Its L is rgb here, LA rgba and 1 a palette,
/// as nothing that is done to images tells them apart.
enum class ImageMode { rgb, palette, rgba, cmyk, gray16 };

/// An image, rows from the top, channels interleaved: pixels.size() == pixel_size() * width * height.
struct Image {
  int width = 0;                           ///< in pixels
  int height = 0;                          ///< in pixels
  std::vector<std::uint8_t> pixels;        ///< [height, width, pixel_size()]; of gray16 the low byte first
  ImageMode mode = ImageMode::rgb;         ///< what they are
  std::vector<std::uint8_t> palette = {};  ///< of mode palette, [256, 3] RGB

  /// Bytes of a pixel.
  std::size_t pixel_size() const { return std::array<std::size_t, 5>{3, 1, 4, 4, 2}[static_cast<std::size_t>(mode)]; }
};

/// An image whose pixels are still to be written: they may lie where those of an image lay that recycle() was given.
RECO_API Image new_image(int width, int height, ImageMode mode = ImageMode::rgb);

/// Gives away an image that is used up. Its memory serves the next images of this thread, which else would wait for the
/// system to clear pages for each of them; up to 64 MiB of it wait until the thread ends.
RECO_API void recycle(Image&& image);

/// Beyond twice Pillow's warning against decompression bombs, where it refuses them.
inline constexpr std::int64_t max_image_pixels = 178'956'970;

/// Decodes a JPEG, PNG or WebP file held in memory to RGB, as PIL's `Image.open(...).convert("RGB")` does: alpha is
/// dropped, palettes and gray are expanded, 16 bits become 8, CMYK is converted, EXIF orientation is ignored (as
/// Hugging Face does), animations give their first frame. Unless `rgb`, the image keeps the mode in which PIL opens it.
///
/// `name` is used in error messages only. Throws Error for an unknown format, a truncated or corrupt file, and for more
/// than `max_pixels` pixels, before they are allocated. As in PIL, damage that libjpeg can skip is no error. Thread
/// safe.
RECO_API Image decode_image(std::span<const std::byte> file, const std::string& name = "image",
                            std::int64_t max_pixels = max_image_pixels, bool rgb = true);

/// decode_image() of a file on disk. Throws Error naming the file. Thread safe.
RECO_API Image read_image(const std::filesystem::path& path, bool rgb = true);

/// The same picture in RGB, as PIL's `convert("RGB")` gives it. Throws Error unless the pixels and the palette have the
/// sizes that they must have. Thread safe.
RECO_API Image to_rgb(Image image);

/// PIL's resampling filters by PIL's numbers, which preprocessor_config.json uses.
enum class Resample { nearest = 0, lanczos = 1, bilinear = 2, bicubic = 3, box = 4, hamming = 5 };

/// Resizes as PIL's `Image.resize` does (antialiased, 8-bit fixed point between the two passes): equal to the byte. The
/// mode stays, and PIL's ways with it: palettes are resized by `nearest` whatever the filter, colours weigh as much as
/// their alpha. Throws Error unless 1 <= width, height <= 65,535. Thread safe.
RECO_API Image resize(const Image& image, int width, int height, Resample filter);

/// What becomes of an image's aspect when both sides are given: lost, or kept with the image inside them, or around
/// them.
enum class Fit { stretch, inside, around };

/// What preprocessor_config.json says, in its order: resize, crop, rescale, normalise; the defaults are those of
/// Hugging Face's CLIPImageProcessor. Lengths are in pixels.
struct RECO_API Preprocess {
  /// Convert to RGB before all else, as Hugging Face does. open_clip and OpenAI resize an image in its own mode, and
  /// convert what they cut out of that.
  bool rgb_first = true;
  bool do_resize = true;                  ///< resize at all
  int shortest_edge = 224;                ///< the shorter side after resizing, if > 0; otherwise both sides are given:
  int resize_width = 0;                   ///< width after resizing
  int resize_height = 0;                  ///< height after resizing
  Fit fit = Fit::stretch;                 ///< what becomes of the aspect when both sides are given
  Resample resample = Resample::bicubic;  ///< filter
  bool do_center_crop = true;             ///< cut, or fill, around the middle
  int crop_width = 224;                   ///< width of the result
  int crop_height = 224;                  ///< height of the result
  /// An odd margin is halved to the even number when it is cut and to the smaller one when it is filled, as torchvision
  /// does it, not to the smaller and the larger one, as Hugging Face does it.
  bool torchvision_crop = false;
  int fill = 0;                         ///< byte around an image that is smaller than the crop
  bool do_rescale = true;               ///< multiply bytes by rescale_factor
  double rescale_factor = 1.0 / 255.0;  ///< from bytes to [0, 1]
  bool do_normalize = true;             ///< subtract mean and divide by std, a channel
  std::array<float, 3> mean{0.48145466F, 0.4578275F, 0.40821073F};  ///< of red, green and blue
  std::array<float, 3> std{0.26862954F, 0.26130258F, 0.27577711F};  ///< of red, green and blue

  /// Reads preprocessor_config.json, or the `image_processor` of a processor_config.json; of a folder that has both the
  /// latter, as transformers does. Keys that are missing keep their defaults, SigLIP's where the file names its image
  /// processor; `size` may be an integer, {"shortest_edge": n} or {"height": h, "width": w}. Or reads the
  /// preprocess_cfg of an open_clip_config.json: the given file, or that of a folder without Hugging Face's weights.
  /// Throws Error naming the file and the key.
  static Preprocess load(const std::filesystem::path& path);

  /// Width and height to which preprocess() resizes an image of this size, before it crops.
  std::array<std::int64_t, 2> resized_size(int width, int height) const;

  /// Width and height of what preprocess() makes of an image of this size. Throws Error unless both are in [1, 65,535].
  std::array<int, 2> output_size(int width, int height) const;
};

/// Resizes, crops, rescales and normalises `image` into `out`, planar [3, height, width] float32 of output_size().
/// Images of other modes than RGB are converted, when config.rgb_first says. An image smaller than the crop is put into
/// the middle of `fill`. Throws Error when `out` has another size. Thread safe.
RECO_API void preprocess(const Image& image, const Preprocess& config, std::span<float> out);

}  // namespace reco
