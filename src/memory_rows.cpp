// SPDX-License-Identifier: Apache-2.0
#include "memory_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <span>

#include "reco/error.h"

namespace reco {

namespace {

constexpr std::array<const char*, 5> kNames{"float16", "int8", "codes4", "codes2", "codes1"};

std::int64_t code_bits(Storage storage) {
  switch (storage) {
    case Storage::codes4:
      return 4;
    case Storage::codes2:
      return 2;
    case Storage::codes1:
      return 1;
    default:
      return 0;
  }
}

/// The positive levels for numbers of the standard normal distribution; the negative ones mirror them.
std::span<const float> levels(std::int64_t bits) {
  static constexpr std::array one{0.7979F};
  static constexpr std::array two{0.4528F, 1.5104F};
  static constexpr std::array four{0.1284F, 0.3881F, 0.6568F, 0.9424F, 1.2562F, 1.6181F, 2.0691F, 2.7326F};
  if (bits == 1) return one;
  if (bits == 2) return two;
  return four;
}

float level(std::int64_t bits, unsigned code) {
  const auto half = levels(bits);
  const auto count = static_cast<unsigned>(half.size());
  return code < count ? -half[count - 1 - code] : half[code - count];
}

unsigned nearest_level(std::int64_t bits, float value) {
  const auto half = levels(bits);
  const auto count = static_cast<unsigned>(half.size());
  unsigned place = 0;
  while (place + 1 < count && std::abs(value) > (half[place] + half[place + 1]) / 2) ++place;
  return value < 0 ? count - 1 - place : count + place;
}

/// What the codes in each byte stand for: 8 / bits floats a byte.
const float* code_table(std::int64_t bits) {
  const auto make = [](std::int64_t b) {
    std::vector<float> table;
    for (unsigned byte = 0; byte < 256; ++byte) {
      for (std::int64_t shift = 0; shift < 8; shift += b) table.push_back(level(b, byte >> shift & ((1U << b) - 1)));
    }
    return table;
  };
  static const std::array tables{make(1), make(2), make(4)};
  return tables[static_cast<std::size_t>(std::countr_zero(static_cast<unsigned>(bits)))].data();
}

/// The signs of a rotation's step, always the same ones: a bit of a hash (Steele, Lea and Flood's finisher).
bool flips(std::int64_t step, std::int64_t place) {
  auto hash = (static_cast<std::uint64_t>(step) << 32 ^ static_cast<std::uint64_t>(place)) + 0x9e3779b97f4a7c15U;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9U;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111ebU;
  return ((hash ^ hash >> 31) & 1) != 0;
}

void flip_signs(float* values, std::int64_t count, std::int64_t step) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = flips(step, i) ? -values[i] : values[i];
}

/// The orthonormal Walsh-Hadamard transform of 2^k values: its own inverse.
void transform(float* values, std::int64_t count) {
  for (std::int64_t half = 1; half < count; half *= 2) {
    for (std::int64_t block = 0; block < count; block += 2 * half) {
      for (std::int64_t i = block; i < block + half; ++i) {
        const float a = values[i], b = values[i + half];
        values[i] = a + b;
        values[i + half] = a - b;
      }
    }
  }
  const float scale = 1.0F / std::sqrt(static_cast<float>(count));
  for (std::int64_t i = 0; i < count; ++i) values[i] *= scale;
}

/// A rotation in steps: signs, then a transform of the first 2^k numbers, then of the last.
constexpr std::int64_t kSteps = 4;

float* step_start(float* values, std::int64_t count, std::int64_t block, std::int64_t step) {
  return step % 2 == 0 ? values : values + count - block;
}

void rotate(float* values, std::int64_t count) {
  const auto block = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(count)));
  for (std::int64_t step = 0; step < kSteps; ++step) {
    float* start = step_start(values, count, block, step);
    flip_signs(start, block, step);
    transform(start, block);
  }
}

void rotate_back(float* values, std::int64_t count) {
  const auto block = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(count)));
  for (std::int64_t step = kSteps - 1; step >= 0; --step) {
    float* start = step_start(values, count, block, step);
    transform(start, block);
    flip_signs(start, block, step);
  }
}

float inverse_root(double squares) { return squares > 0 ? static_cast<float>(1.0 / std::sqrt(squares)) : 0.0F; }

/// Room for one row that a thread keeps.
float* scratch(std::int64_t count) {
  thread_local std::vector<float> room;
  if (static_cast<std::int64_t>(room.size()) < count) room.resize(static_cast<std::size_t>(count));
  return room.data();
}

const Half* halves(const std::byte* row) { return reinterpret_cast<const Half*>(row); }
const std::int8_t* bytes_of(const std::byte* row) { return reinterpret_cast<const std::int8_t*>(row); }

}  // namespace

const char* storage_name(Storage storage) { return kNames[static_cast<std::size_t>(storage)]; }

Storage parse_storage(const std::string& name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  check(found != kNames.end(), "memory.create",
        "storage must be 'float16', 'int8', 'codes4', 'codes2' or 'codes1', got '", name, "'");
  return static_cast<Storage>(found - kNames.begin());
}

RowFormat::RowFormat(Storage storage, std::int64_t dim) : storage_(storage), dim_(dim), bits_(code_bits(storage)) {
  check(!rotates() || dim % 8 == 0, "memory.create", "the storage '", storage_name(storage),
        "' needs a dim that is a multiple of 8, got ", dim);
  width_ = memory_kernel().padded(dim);
}

std::int64_t RowFormat::columns() const { return rotates() ? dim_ * bits_ / 8 : dim_; }

std::int64_t RowFormat::bytes() const { return storage_ == Storage::float16 ? 2 * dim_ : columns(); }

const char* RowFormat::dtype() const {
  if (storage_ == Storage::float16) return "<f2";
  return storage_ == Storage::int8 ? "|i1" : "|u1";
}

void RowFormat::encode(const float* row, std::byte* out) const {
  if (storage_ == Storage::float16) {
    memory_kernel().narrow(row, dim_, reinterpret_cast<Half*>(out));
  } else if (storage_ == Storage::int8) {
    float most = 0;
    for (std::int64_t i = 0; i < dim_; ++i) most = std::max(most, std::abs(row[i]));
    for (std::int64_t i = 0; i < dim_; ++i) out[i] = static_cast<std::byte>(std::lrint(row[i] * (127.0F / most)));
  } else {
    float* values = scratch(width_);
    prepare(row, values);
    const float spread = std::sqrt(static_cast<float>(dim_));
    std::fill_n(out, columns(), std::byte{0});
    for (std::int64_t i = 0; i < dim_; ++i) {
      const unsigned code = nearest_level(bits_, values[i] * spread);
      out[i * bits_ / 8] |= static_cast<std::byte>(code << (i * bits_ % 8));
    }
  }
}

float RowFormat::load(const std::byte* row, float* out) const {
  const MemoryKernel& kernel = memory_kernel();
  if (storage_ == Storage::float16) {
    kernel.widen(halves(row), dim_, out);
    return 1;
  }
  if (storage_ == Storage::int8) {
    kernel.widen_int8(bytes_of(row), dim_, out);
    return inverse_root(static_cast<double>(kernel.squares_int8(bytes_of(row), dim_)));
  }
  const std::int64_t step = 8 / bits_;
  const float* table = code_table(bits_);
  double squares = 0;
  for (std::int64_t i = 0; i < columns(); ++i) {
    const float* values = table + std::to_integer<std::int64_t>(row[i]) * step;
    float sum = 0;
    for (std::int64_t j = 0; j < step; ++j) {
      out[i * step + j] = values[j];
      sum += values[j] * values[j];
    }
    squares += sum;
  }
  return inverse_root(squares);
}

void RowFormat::decode(const std::byte* row, float* out) const {
  if (!rotates()) {
    const float scale = load(row, out);
    for (std::int64_t i = 0; scale != 1 && i < dim_; ++i) out[i] *= scale;
    return;
  }
  float* values = scratch(width_);
  const float scale = load(row, values);
  rotate_back(values, dim_);
  for (std::int64_t i = 0; i < dim_; ++i) out[i] = values[i] * scale;
}

void RowFormat::prepare(const float* query, float* out) const {
  std::copy_n(query, dim_, out);
  std::fill(out + dim_, out + width_, 0.0F);
  if (rotates()) rotate(out, dim_);
}

void RowFormat::scores_of_one(const float* prepared, const std::byte* const* rows, std::int64_t m, float* out) const {
  const MemoryKernel& kernel = memory_kernel();
  if (storage_ == Storage::float16) {
    kernel.scores_of_one(prepared, rows, m, dim_, out);
  } else if (storage_ == Storage::int8) {
    kernel.scores_of_one_int8(prepared, rows, m, dim_, out);
    for (std::int64_t j = 0; j < m; ++j) {
      out[j] *= inverse_root(static_cast<double>(kernel.squares_int8(bytes_of(rows[j]), dim_)));
    }
  } else {
    constexpr std::int64_t step = 4;
    float* values = scratch(step * width_);
    for (std::int64_t j = 0; j < m; j += step) scores(prepared, 1, rows + j, std::min(step, m - j), values, out + j, m);
  }
}

void RowFormat::scores(const float* prepared, std::int64_t n, const std::byte* const* rows, std::int64_t m, float* work,
                       float* out, std::int64_t stride) const {
  std::array<float, most_rows> scales;
  for (std::int64_t j = 0; j < m; ++j) {
    scales[j] = load(rows[j], work + j * width_);
    std::fill(work + j * width_ + dim_, work + (j + 1) * width_, 0.0F);
  }
  memory_kernel().scores(prepared, n, work, m, width_, out, stride);
  if (storage_ == Storage::float16) return;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < m; ++j) out[i * stride + j] *= scales[j];
  }
}

}  // namespace reco
