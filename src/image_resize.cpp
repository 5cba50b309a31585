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
#include <memory>
#include <numbers>
#include <utility>
#include <vector>

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

/// For each output position, where its inputs start, how many they are, and their fixed-point weights.
struct Kernel {
  std::vector<int> first;
  std::vector<int> count;
  std::vector<std::int32_t> weights;  // [outputs, stride]
  std::size_t stride = 0;

  const std::int32_t* of(int output) const { return weights.data() + static_cast<std::size_t>(output) * stride; }
  int begin() const { return first.front(); }
  int end() const { return first.back() + count.back(); }
};

/// The weights of one output, normalised to a sum of one before they are rounded.
void quantise(std::vector<double>& exact, int count, std::int32_t* out) {
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += exact[i];
  for (int i = 0; i < count; ++i) {
    const double scaled = (sum != 0.0 ? exact[i] / sum : exact[i]) * (1 << precision);
    out[i] = static_cast<std::int32_t>(scaled + (scaled < 0.0 ? -0.5 : 0.5));
  }
}

/// The kernel of outputs [start, start + outputs) when `in` pixels become `out`.
Kernel make_kernel(int in, std::int64_t out, std::int64_t start, int outputs, const Filter& filter) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double widened = std::max(scale, 1.0);  // shrinking averages over all that falls into an output pixel
  const double support = filter.support * widened;
  const double inverse = 1.0 / widened;
  Kernel kernel;
  kernel.stride = static_cast<std::size_t>(std::min<double>(std::ceil(support) * 2 + 1, in));
  kernel.weights.resize(kernel.stride * static_cast<std::size_t>(outputs));
  std::vector<double> exact(kernel.stride);
  for (int i = 0; i < outputs; ++i) {
    const double center = (static_cast<double>(start + i) + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = static_cast<int>(std::min(center + support + 0.5, static_cast<double>(in))) - first;
    for (int j = 0; j < count; ++j) exact[j] = filter.weight((j + first - center + 0.5) * inverse);
    quantise(exact, count, kernel.weights.data() + kernel.stride * static_cast<std::size_t>(i));
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

/// All output pixels of a tile.
void horizontal_tile(const std::uint8_t* tile, const int* first, const int* count, const std::int32_t* weights,
                     std::size_t stride, int outputs, std::uint8_t* out) {
  constexpr int pixel = 3 * lanes;
  static const Weigh weigh_pixel = choose<pixel>();
  for (int x = 0; x < outputs; ++x, weights += stride, out += pixel) {
    weigh_pixel(tile + static_cast<std::size_t>(first[x]) * pixel, pixel, weights, count[x], out);
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
        data(new std::uint8_t[stride * static_cast<std::size_t>(height)]) {}
  std::uint8_t* row(int y) { return data.get() + stride * static_cast<std::size_t>(y); }
  int rows;
  std::size_t bytes;
  std::size_t stride;
  std::unique_ptr<std::uint8_t[]> data;  // not a vector: that would be cleared first
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
    return image.pixels.data() + 3 * static_cast<std::size_t>(pixel);
  }
};

Band copy(const View& view) {
  Band band(view.height, 3 * static_cast<std::size_t>(view.width));
  for (int y = 0; y < view.height; ++y) std::memcpy(band.row(y), view.row(y), band.bytes);
  return band;
}

/// Resamples rows horizontally; `row(y)` gives the y-th of `rows`, starting with the kernel's first pixel.
template <typename Row>
Band horizontal_pass(const Row& row, int rows, const Kernel& kernel) {
  const auto outputs = static_cast<int>(kernel.first.size());
  const auto in_bytes = static_cast<std::size_t>(kernel.end() - kernel.begin()) * 3;
  Band band(rows, static_cast<std::size_t>(outputs) * 3);
  std::vector<std::uint8_t> in((in_bytes + lanes) * lanes);
  std::vector<std::uint8_t> out((band.bytes + lanes) * lanes);
  std::vector<int> first = kernel.first;
  for (int& start : first) start -= kernel.begin();
  for (int y = 0; y < rows; y += lanes) {
    const std::uint8_t* sources[lanes];
    for (int r = 0; r < lanes; ++r) sources[r] = row(std::min(y + r, rows - 1));
    to_tile(sources, in_bytes, in.data());
    horizontal_tile(in.data(), first.data(), kernel.count.data(), kernel.weights.data(), kernel.stride, outputs,
                    out.data());
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

void nearest_pass(const Image& image, std::int64_t width, std::int64_t height, const Region& region, Image& out) {
  const auto columns = nearest_positions(image.width, width, region.left, region.width);
  const auto rows = nearest_positions(image.height, height, region.top, region.height);
  std::uint8_t* to = out.pixels.data();
  for (const int y : rows) {
    const std::uint8_t* from = image.pixels.data() + static_cast<std::size_t>(y) * image.width * 3;
    for (const int x : columns) {
      const std::uint8_t* pixel = from + static_cast<std::size_t>(x) * 3;
      *to++ = pixel[0];
      *to++ = pixel[1];
      *to++ = pixel[2];
    }
  }
}

Band resample(const Image& image, std::int64_t width, std::int64_t height, const Filter& filter, const Region& region) {
  // A side that stays as it is has the kernel "this pixel, once".
  const Filter identity{box, 0.5};
  const Kernel rows =
      make_kernel(image.height, height, region.top, region.height, height == image.height ? identity : filter);
  const Kernel columns =
      make_kernel(image.width, width, region.left, region.width, width == image.width ? identity : filter);
  const View view{image, columns.begin(), rows.begin(), columns.end() - columns.begin(), rows.end() - rows.begin()};
  // Since version 13, PIL starts with the vertical pass where the height shrinks by far more than the width; the order
  // shows, as pixels between the passes are rounded.
  if (height < image.height && image.height - height > 2 * (image.width - width)) {
    Band source = copy(view);
    Band between = vertical_pass(source, rows);
    return horizontal_pass([&](int y) { return between.row(y); }, between.rows, columns);
  }
  Band between =
      width == image.width ? copy(view) : horizontal_pass([&](int y) { return view.row(y); }, view.height, columns);
  return height == image.height ? std::move(between) : vertical_pass(between, rows);
}

}  // namespace

Image resize_region(const Image& image, std::int64_t width, std::int64_t height, Resample filter,
                    const Region& region) {
  const auto bytes = static_cast<std::size_t>(region.width) * 3;
  Image out{region.width, region.height, std::vector<std::uint8_t>(bytes * static_cast<std::size_t>(region.height))};
  if (filter == Resample::nearest || (width == image.width && height == image.height)) {
    nearest_pass(image, width, height, region, out);
    return out;
  }
  Band band = resample(image, width, height, filter_of(filter), region);
  for (int y = 0; y < out.height; ++y) {
    std::memcpy(out.pixels.data() + static_cast<std::size_t>(y) * bytes, band.row(y), bytes);
  }
  return out;
}

}  // namespace reco
