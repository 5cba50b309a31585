// SPDX-License-Identifier: Apache-2.0
// How embeddings lie in the shards, and how queries are compared with them there. All rows have unit length, so none
// keeps a scale of its own: what a row's numbers lack of length 1 is its scale.
//
//     float16            '<f2' [rows, dim]
//     int8               '|i1' [rows, dim]: round(127 x / max |x|)
//     codes4, codes2, codes1   '|u1' [rows, dim * bits / 8]: the row is rotated, which makes its numbers normally
//                        distributed whatever they were, and each becomes the nearest of 2^bits levels (Max,
//                        "Quantizing for minimum distortion", 1960; rotation and levels after TurboQuant, arXiv
//                        2504.19874). Nothing is trained, so the first row is kept as well as the last. The first
//                        number of a byte lies in its lowest bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "memory_kernel.h"
#include "reco/memory.h"

namespace reco {

/// Immutable, cheap to copy, thread safe.
class RowFormat {
 public:
  RowFormat() = default;
  RowFormat(Storage storage, std::int64_t dim);

  Storage storage() const { return storage_; }
  std::int64_t dim() const { return dim_; }
  /// Bytes a row.
  std::int64_t bytes() const;
  /// Of a shard's array.
  const char* dtype() const;
  std::int64_t columns() const;

  /// A row of unit length, dim floats, as bytes() bytes.
  void encode(const float* row, std::byte* out) const;
  /// And back: of unit length but for rounding; zeros for a damaged row that has no length.
  void decode(const std::byte* row, float* out) const;

  /// Floats that a prepared query takes, the padding behind it included.
  std::int64_t width() const { return width_; }
  /// Whether prepare() changes the numbers of a query.
  bool rotates() const { return bits_ > 0; }
  /// From dim floats to width() floats.
  void prepare(const float* query, float* out) const;
  /// out[j] = query . rows[j]; out has room for m rounded up to 4. Equal rows have equal scores, here and in scores().
  void scores_of_one(const float* prepared, const std::byte* const* rows, std::int64_t m, float* out) const;
  /// out[i * stride + j] = queries[i] . rows[j] for m <= most_rows rows; `work` has room for m * width() floats; stride
  /// >= m rounded up to 4, and so much of out is overwritten.
  static constexpr std::int64_t most_rows = 64;
  void scores(const float* prepared, std::int64_t n, const std::byte* const* rows, std::int64_t m, float* work,
              float* out, std::int64_t stride) const;

 private:
  /// The numbers of a row without their scale, which is returned.
  float load(const std::byte* row, float* out) const;

  Storage storage_ = Storage::float16;
  std::int64_t dim_ = 0;
  std::int64_t bits_ = 0;  ///< of a code
  std::int64_t width_ = 0;
};

}  // namespace reco
