// SPDX-License-Identifier: Apache-2.0
// The inner loops of search over rows in half precision or 8-bit numbers, one version a SIMD level, chosen at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace reco {

/// An IEEE 754 half-precision number as it lies in a shard.
using Half = std::uint16_t;

/// The sum over a pair of vectors always runs in the same order, wherever the pair lies and whatever is computed beside
/// it: equal rows have equal scores, whatever the batch and the threads.
struct MemoryKernel {
  const char* name;    ///< "avx512", "avx2" or "generic"
  std::int64_t lanes;  ///< padded_dim of the functions below is a multiple of this
  std::int64_t padded(std::int64_t dim) const { return (dim + lanes - 1) / lanes * lanes; }

  void (*widen)(const Half* in, std::int64_t count, float* out);
  void (*narrow)(const float* in, std::int64_t count, Half* out);  ///< rounds to nearest even

  /// out[i * stride + j] = queries[i] . rows[j]; stride >= m rounded up to 4, and so much of out is overwritten.
  void (*scores)(const float* queries, std::int64_t n, const float* rows, std::int64_t m, std::int64_t padded_dim,
                 float* out, std::int64_t stride);
  /// The same for one padded query and rows of dim halves that lie anywhere, not yet widened; out has room for m
  /// rounded up to 4.
  void (*scores_of_one)(const float* query, const std::byte* const* rows, std::int64_t m, std::int64_t dim, float* out);

  // For rows of 8-bit numbers, as they are, without a scale:
  void (*widen_int8)(const std::int8_t* in, std::int64_t count, float* out);
  std::int64_t (*squares_int8)(const std::int8_t* in, std::int64_t count);  ///< their sum; count <= 65,536
  void (*scores_of_one_int8)(const float* query, const std::byte* const* rows, std::int64_t m, std::int64_t dim,
                             float* out);
};

/// The versions that this processor runs, best first.
std::vector<const MemoryKernel*> memory_kernels();

/// The best of them.
const MemoryKernel& memory_kernel();

}  // namespace reco
