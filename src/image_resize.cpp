// SPDX-License-Identifier: Apache-2.0
// Separable resampling in the fixed point of PIL: coefficients with 22 fractional bits, 8-bit pixels between the
// horizontal and the vertical pass, so that every byte equals PIL's.
//
// Both passes run 16 lanes wide. The horizontal one handles 16 rows at a time, turned so that the same byte of 16 rows
// is contiguous: then one coefficient serves 16 lanes and no lane waits for another.
#include "image_resize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numbers>
#include <utility>
#include <vector>

#include "image_memory.h"
#include "image_mode.h"
#include "reco/error.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define RECO_X86 1
#include <immintrin.h>
#if !defined(__clang__)
// GCC 12 warns about its own header, which leaves registers undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace reco {

namespace {

constexpr int precision = 32 - 8 - 2;  // bits of a coefficient's fraction: 8 bits of pixel and two of headroom are left
constexpr int lanes = 16;
constexpr int chunk = 4 * lanes;  // bytes that the vertical pass handles at once

using Bytes = std::uint8_t __attribute__((vector_size(lanes)));

// ---- coefficients

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

double hamming(double x) {
  x = std::abs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= std::numbers::pi;
  return std::sin(x) / x * (0.54F + 0.46F * std::cos(x));
}

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * std::numbers::pi) / (x * std::numbers::pi); }

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

struct Filter {
  double (*weight)(double);
  double support;
};

Filter filter_of(Resample resample) {
  switch (resample) {
    case Resample::lanczos:
      return {lanczos, 3.0};
    case Resample::bilinear:
      return {triangle, 1.0};
    case Resample::bicubic:
      return {cubic, 2.0};
    case Resample::box:
      return {box, 0.5};
    case Resample::hamming:
      return {hamming, 1.0};
    default:
      fail("image.resize", "filter must be from 0 to 5, got ", static_cast<int>(resample));
  }
}

/// For each output position, where its inputs start, how many they are, and their weights: in fixed point, or
/// exact for 16 bits.
struct Kernel {
  std::vector<int> first;
  std::vector<int> count;
  std::vector<std::int32_t> weights;  // [outputs, stride], or
  std::vector<double> exact;          // [outputs, stride]
  std::size_t stride = 0;

  const std::int32_t* of(std::size_t output) const { return weights.data() + output * stride; }
  const double* exact_of(std::size_t output) const { return exact.data() + output * stride; }
  int begin() const { return first.front(); }
  int end() const { return first.back() + count.back(); }
};

/// The exact weights of one output, which have a sum of one.
void weigh_exactly(const Filter& filter, double offset, double inverse, int count, double* out) {
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += out[i] = filter.weight((i + offset) * inverse);
  for (int i = 0; i < count && sum != 0.0; ++i) out[i] /= sum;
}

void quantise(const double* exact, int count, std::int32_t* out) {
  for (int i = 0; i < count; ++i) {
    const double scaled = exact[i] * (1 << precision);
    out[i] = static_cast<std::int32_t>(scaled + (scaled < 0.0 ? -0.5 : 0.5));
  }
}

/// The kernel of outputs [start, start + outputs) when `in` pixels become `out`.
Kernel make_kernel(int in, std::int64_t out, std::int64_t start, int outputs, const Filter& filter, bool deep) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double widened = std::max(scale, 1.0);  // shrinking averages over all that falls into an output pixel
  const double support = filter.support * widened;
  const double inverse = 1.0 / widened;
  Kernel kernel;
  kernel.stride = static_cast<std::size_t>(std::min<double>(std::ceil(support) * 2 + 1, in));
  kernel.exact.resize(kernel.stride * (deep ? static_cast<std::size_t>(outputs) : 1));
  kernel.weights.resize(kernel.stride * (deep ? 0 : static_cast<std::size_t>(outputs)));
  for (int i = 0; i < outputs; ++i) {
    const double center = (static_cast<double>(start + i) + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = static_cast<int>(std::min(center + support + 0.5, static_cast<double>(in))) - first;
    const std::size_t at = kernel.stride * static_cast<std::size_t>(i);
    double* exact = kernel.exact.data() + (deep ? at : 0);
    weigh_exactly(filter, first - center + 0.5, inverse, count, exact);
    if (!deep) quantise(exact, count, kernel.weights.data() + at);
    kernel.first.push_back(first);
    kernel.count.push_back(count);
  }
  return kernel;
}

// ---- lanes

Bytes interleave_low(Bytes a, Bytes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
  return __builtin_shuffle(a, b, Bytes{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
#endif
}

Bytes interleave_high(Bytes a, Bytes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
  return __builtin_shuffle(a, b, Bytes{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#endif
}

/// Turns a 16 x 16 matrix of bytes: each of the four rounds moves one bit of the row number into the column number.
inline void transpose(Bytes* rows) {
  for (int round = 0; round < 4; ++round) {
    Bytes next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + lanes / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + lanes / 2]);
    }
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

/// 16 rows, the first ones real, of `bytes` bytes each become [bytes rounded up to 16][16 rows].
void to_tile(const std::uint8_t* const* rows, std::size_t bytes, std::uint8_t* tile) {
  for (std::size_t at = 0; at < bytes; at += lanes) {
    const std::size_t length = std::min<std::size_t>(lanes, bytes - at);
    Bytes block[lanes] = {};
    if (length == lanes) {  // a constant length becomes one load
      for (int r = 0; r < lanes; ++r) std::memcpy(&block[r], rows[r] + at, lanes);
    } else {
      for (int r = 0; r < lanes; ++r) std::memcpy(&block[r], rows[r] + at, length);
    }
    transpose(block);
    std::memcpy(tile + at * lanes, block, sizeof(block));
  }
}

/// The way back, for the first `count` rows, which lie `stride` bytes apart.
void from_tile(const std::uint8_t* tile, std::size_t bytes, int count, std::uint8_t* out, std::size_t stride) {
  for (std::size_t at = 0; at < bytes; at += lanes) {
    Bytes block[lanes];
    std::memcpy(block, tile + at * lanes, sizeof(block));
    transpose(block);
    const std::size_t length = std::min<std::size_t>(lanes, bytes - at);
    for (int r = 0; r < count; ++r) std::memcpy(out + static_cast<std::size_t>(r) * stride + at, &block[r], length);
  }
}

/// `width` bytes side by side, each the weighted sum of `count` bytes that lie `step` apart, rounded and clipped.
using Weigh = void (*)(const std::uint8_t* in, std::size_t step, const std::int32_t* weights, int count,
                       std::uint8_t* out);

template <int width>
void weigh(const std::uint8_t* in, std::size_t step, const std::int32_t* weights, int count, std::uint8_t* out) {
  std::int32_t sums[width];
  for (int i = 0; i < width; ++i) sums[i] = 1 << (precision - 1);
  for (int k = 0; k < count; ++k, in += step) {
    const std::int32_t weight = weights[k];
    for (int i = 0; i < width; ++i) sums[i] += in[i] * weight;
  }
  for (int i = 0; i < width; ++i) out[i] = static_cast<std::uint8_t>(std::clamp(sums[i] >> precision, 0, 255));
}

#ifdef RECO_X86
// Compilers widen bytes to 32 bits in two steps where one instruction does it: by hand this is twice as fast.
template <int width>
__attribute__((target("avx2"))) void weigh_avx2(const std::uint8_t* in, std::size_t step, const std::int32_t* weights,
                                                int count, std::uint8_t* out) {
  __m256i sums[width / 8];
  for (__m256i& sum : sums) sum = _mm256_set1_epi32(1 << (precision - 1));
  for (int k = 0; k < count; ++k, in += step) {
    const __m256i weight = _mm256_set1_epi32(weights[k]);
    for (int i = 0; i < width / 8; ++i) {
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + 8 * i)));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_mullo_epi32(bytes, weight));
    }
  }
  for (int i = 0; i < width / 8; i += 2) {  // packing clips, and works on halves, which the permutation puts in order
    const __m256i low = _mm256_srai_epi32(sums[i], precision), high = _mm256_srai_epi32(sums[i + 1], precision);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * i), bytes);
  }
}

template <int width>
__attribute__((target("avx512f"))) void weigh_avx512(const std::uint8_t* in, std::size_t step,
                                                     const std::int32_t* weights, int count, std::uint8_t* out) {
  __m512i sums[width / 16];
  for (__m512i& sum : sums) sum = _mm512_set1_epi32(1 << (precision - 1));
  for (int k = 0; k < count; ++k, in += step) {
    const __m512i weight = _mm512_set1_epi32(weights[k]);
    for (int i = 0; i < width / 16; ++i) {
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 16 * i)));
      sums[i] = _mm512_add_epi32(sums[i], _mm512_mullo_epi32(bytes, weight));
    }
  }
  for (int i = 0; i < width / 16; ++i) {
    const __m512i sum = _mm512_max_epi32(_mm512_srai_epi32(sums[i], precision), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * i), _mm512_cvtusepi32_epi8(sum));
  }
}
#endif

/// The fastest that this processor can run.
template <int width>
Weigh choose() {
#ifdef RECO_X86
  if (__builtin_cpu_supports("avx512f")) return weigh_avx512<width>;
  if (__builtin_cpu_supports("avx2")) return weigh_avx2<width>;
#endif
  return weigh<width>;
}

/// What weighs the channels of a pixel in all rows of a tile.
Weigh choose(int channels) {
  static const std::array<Weigh, 3> choices{choose<lanes>(), choose<3 * lanes>(), choose<4 * lanes>()};
  return choices[static_cast<std::size_t>(channels / 2)];  // 1, 3 or 4
}

/// All output pixels of a tile, which starts with the kernel's first.
void horizontal_tile(const std::uint8_t* tile, int channels, const Kernel& kernel, std::uint8_t* out) {
  const std::size_t pixel = static_cast<std::size_t>(channels) * lanes;
  const Weigh weigh_pixel = choose(channels);
  for (std::size_t x = 0; x < kernel.first.size(); ++x, out += pixel) {
    const auto start = static_cast<std::size_t>(kernel.first[x] - kernel.begin());
    weigh_pixel(tile + start * pixel, pixel, kernel.of(x), kernel.count[x], out);
  }
}

/// One row of the result from `count` rows that lie `stride` bytes apart; all are padded to a multiple of `chunk`.
void vertical_row(const std::uint8_t* in, std::size_t stride, const std::int32_t* weights, int count, std::size_t bytes,
                  std::uint8_t* out) {
  static const Weigh weigh_chunk = choose<chunk>();
  for (std::size_t at = 0; at < bytes; at += chunk) weigh_chunk(in + at, stride, weights, count, out + at);
}

// ---- passes

/// Rows of bytes, `stride` apart, padded so that whole chunks may be read and written in each.
struct Band {
  Band(int height, std::size_t width)
      : rows(height),
        bytes(width),
        stride((width + chunk - 1) / chunk * chunk),
        data(take_memory(stride * static_cast<std::size_t>(height))) {}
  Band(Band&&) = default;
  Band& operator=(Band&&) = delete;
  ~Band() { give_back(std::move(data)); }
  std::uint8_t* row(int y) { return data.data() + stride * static_cast<std::size_t>(y); }
  int rows;
  std::size_t bytes;
  std::size_t stride;
  std::vector<std::uint8_t> data;
};

/// Columns [left, left + width) of the image's rows [top, top + height).
struct View {
  const Image& image;
  std::int64_t left;
  int top;
  int width;
  int height;
  const std::uint8_t* row(int y) const {
    const auto pixel = static_cast<std::int64_t>(top + y) * image.width + left;
    return image.pixels.data() + image.pixel_size() * static_cast<std::size_t>(pixel);
  }
};

Band copy(const View& view) {
  Band band(view.height, view.image.pixel_size() * static_cast<std::size_t>(view.width));
  for (int y = 0; y < view.height; ++y) std::memcpy(band.row(y), view.row(y), band.bytes);
  return band;
}

/// Resamples rows horizontally; `row(y)` gives the y-th of `rows`, starting with the kernel's first pixel.
template <typename Row>
Band horizontal_pass(const Row& row, int rows, int channels, const Kernel& kernel) {
  const auto in_bytes = static_cast<std::size_t>(kernel.end() - kernel.begin()) * channels;
  Band band(rows, kernel.first.size() * channels);
  std::vector<std::uint8_t> in((in_bytes + lanes) * lanes);
  std::vector<std::uint8_t> out((band.bytes + lanes) * lanes);
  for (int y = 0; y < rows; y += lanes) {
    const std::uint8_t* sources[lanes];
    for (int r = 0; r < lanes; ++r) sources[r] = row(std::min(y + r, rows - 1));
    to_tile(sources, in_bytes, in.data());
    horizontal_tile(in.data(), channels, kernel, out.data());
    from_tile(out.data(), band.bytes, std::min(lanes, rows - y), band.row(y), band.stride);
  }
  return band;
}

/// Resamples the columns of a band whose first row is the kernel's first.
Band vertical_pass(Band& in, const Kernel& kernel) {
  Band out(static_cast<int>(kernel.first.size()), in.bytes);
  for (int y = 0; y < out.rows; ++y) {
    vertical_row(in.row(kernel.first[y] - kernel.begin()), in.stride, kernel.of(y), kernel.count[y], in.bytes,
                 out.row(y));
  }
  return out;
}

/// PIL weighs 16-bit gray in floating point, and clips the two bytes of the sum each for itself.
void weigh_deep(const std::uint8_t* in, std::size_t step, const double* weights, int count, std::uint8_t* out) {
  double sum = 0.0;
  for (int k = 0; k < count; ++k, in += step) sum += (in[0] | in[1] << 8) * weights[k];
  const auto value = static_cast<int>(sum + (sum < 0.0 ? -0.5 : 0.5));
  out[0] = static_cast<std::uint8_t>(std::max(value % 256, 0));
  out[1] = static_cast<std::uint8_t>(std::clamp(value >> 8, 0, 255));
}

/// horizontal_pass() of 16-bit gray.
template <typename Row>
Band deep_horizontal_pass(const Row& row, int rows, const Kernel& kernel) {
  Band band(rows, 2 * kernel.first.size());
  for (int y = 0; y < rows; ++y) {
    for (std::size_t x = 0; x < kernel.first.size(); ++x) {
      const std::uint8_t* in = row(y) + 2 * static_cast<std::size_t>(kernel.first[x] - kernel.begin());
      weigh_deep(in, 2, kernel.exact_of(x), kernel.count[x], band.row(y) + 2 * x);
    }
  }
  return band;
}

/// vertical_pass() of 16-bit gray.
Band deep_vertical_pass(Band& in, const Kernel& kernel) {
  Band out(static_cast<int>(kernel.first.size()), in.bytes);
  for (int y = 0; y < out.rows; ++y) {
    const std::uint8_t* rows = in.row(kernel.first[y] - kernel.begin());
    for (std::size_t x = 0; x < in.bytes; x += 2) {
      weigh_deep(rows + x, in.stride, kernel.exact_of(y), kernel.count[y], out.row(y) + x);
    }
  }
  return out;
}

/// An image of the region's size in the mode of another.
Image blank(const Image& like, const Region& region) {
  Image image = new_image(region.width, region.height, like.mode);
  image.palette = like.palette;
  return image;
}

/// The input position of each output in [start, start + outputs). PIL adds up the step, so its rounding errors too.
std::vector<int> nearest_positions(int in, std::int64_t out, std::int64_t start, int outputs) {
  const double step = static_cast<double>(in) / static_cast<double>(out);
  double position = step * 0.5;
  for (std::int64_t i = 0; i < start; ++i) position += step;
  std::vector<int> positions(outputs);
  for (int& value : positions) {
    value = std::min(static_cast<int>(position), in - 1);
    position += step;
  }
  return positions;
}

template <std::size_t size>
void pick(const Image& image, const std::vector<int>& columns, const std::vector<int>& rows, std::uint8_t* to) {
  for (const int y : rows) {
    const std::uint8_t* from = image.pixels.data() + static_cast<std::size_t>(y) * image.width * size;
    for (const int x : columns) to = std::copy_n(from + static_cast<std::size_t>(x) * size, size, to);
  }
}

void nearest_pass(const Image& image, std::int64_t width, std::int64_t height, const Region& region, Image& out) {
  const auto columns = nearest_positions(image.width, width, region.left, region.width);
  const auto rows = nearest_positions(image.height, height, region.top, region.height);
  constexpr std::array picks{pick<1>, pick<2>, pick<3>, pick<4>};
  picks[image.pixel_size() - 1](image, columns, rows, out.pixels.data());
}

Band resample(const Image& image, std::int64_t width, std::int64_t height, const Filter& filter, const Region& region) {
  const auto channels = static_cast<int>(image.pixel_size());
  const bool deep = image.mode == ImageMode::gray16;
  // A side that stays as it is has the kernel "this pixel, once".
  const Filter identity{box, 0.5};
  const Kernel rows =
      make_kernel(image.height, height, region.top, region.height, height == image.height ? identity : filter, deep);
  const Kernel columns =
      make_kernel(image.width, width, region.left, region.width, width == image.width ? identity : filter, deep);
  const View view{image, columns.begin(), rows.begin(), columns.end() - columns.begin(), rows.end() - rows.begin()};
  const auto horizontally = [&](const auto& row, int count) {
    return deep ? deep_horizontal_pass(row, count, columns) : horizontal_pass(row, count, channels, columns);
  };
  const auto vertically = [&](Band& band) { return deep ? deep_vertical_pass(band, rows) : vertical_pass(band, rows); };
  // Since version 13, PIL starts with the vertical pass where the height shrinks by far more than the width; the order
  // shows, as pixels between the passes are rounded.
  if (height < image.height && image.height - height > 2 * (image.width - width)) {
    Band source = copy(view);
    Band between = vertically(source);
    return horizontally([&](int y) { return between.row(y); }, between.rows);
  }
  Band between = width == image.width ? copy(view) : horizontally([&](int y) { return view.row(y); }, view.height);
  return height == image.height ? std::move(between) : vertically(between);
}

/// resize_region() of an image whose channels are weighed as they are.
Image resampled(const Image& image, std::int64_t width, std::int64_t height, const Filter& filter,
                const Region& region) {
  Image out = blank(image, region);
  const std::size_t bytes = image.pixel_size() * static_cast<std::size_t>(region.width);
  Band band = resample(image, width, height, filter, region);
  for (int y = 0; y < out.height; ++y) {
    std::memcpy(out.pixels.data() + static_cast<std::size_t>(y) * bytes, band.row(y), bytes);
  }
  return out;
}

}  // namespace

Image resize_region(const Image& image, std::int64_t width, std::int64_t height, Resample filter,
                    const Region& region) {
  const bool same_size = width == image.width && height == image.height;
  if (filter == Resample::nearest || image.mode == ImageMode::palette || same_size) {
    Image out = blank(image, region);
    nearest_pass(image, width, height, region, out);
    return out;
  }
  if (image.mode != ImageMode::rgba) return resampled(image, width, height, filter_of(filter), region);
  Image weighted = blank(image, {0, 0, image.width, image.height});
  std::copy(image.pixels.begin(), image.pixels.end(), weighted.pixels.begin());
  premultiply(weighted);
  Image out = resampled(weighted, width, height, filter_of(filter), region);
  recycle(std::move(weighted));
  unpremultiply(out);
  return out;
}

}  // namespace reco
