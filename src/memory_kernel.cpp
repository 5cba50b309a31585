// SPDX-License-Identifier: Apache-2.0
#include "memory_kernel.h"

#include <cstddef>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace reco {

namespace generic {

typedef float V __attribute__((vector_size(16)));
typedef std::int32_t I __attribute__((vector_size(16)));
typedef Half H __attribute__((vector_size(8)));
typedef std::int8_t B __attribute__((vector_size(4)));
constexpr std::int64_t lanes = 4;
constexpr int tile_queries = 3;

/// Moves exponent and mantissa into place and mends the exponent's bias by a multiplication, which also turns half's
/// subnormals into normal numbers.
inline V widen_lanes(const Half* from) {
  H half;
  __builtin_memcpy(&half, from, sizeof half);
  const I bits = __builtin_convertvector(half, I);
  const V magnitude = reinterpret_cast<V>((bits & 0x7fff) << 13) * 0x1p112F;
  return reinterpret_cast<V>(reinterpret_cast<I>(magnitude) | ((bits & 0x8000) << 16));
}

inline V widen_lanes(const std::int8_t* from) {
  B bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, V);
}

/// Round to nearest even; only finite magnitudes up to 65,504 occur.
inline Half narrow_one(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  bits &= 0x7fffffffU;
  if (bits < 0x38800000U) {  // below 2^-14: subnormal, the float addition rounds
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, sizeof bits);
    magnitude += 0.5F;
    __builtin_memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<Half>(sign | (bits - 0x3f000000U));
  }
  bits += 0xfffU + ((bits >> 13) & 1U);
  return static_cast<Half>(sign | ((bits - 0x38000000U) >> 13));
}

inline void narrow_lanes(V value, Half* to) {
  for (int i = 0; i < lanes; ++i) to[i] = narrow_one(value[i]);
}

inline void sum4(V a, V b, V c, V d, float* out) {
  const V sums = {(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]), (c[0] + c[2]) + (c[1] + c[3]),
                  (d[0] + d[2]) + (d[1] + d[3])};
  __builtin_memcpy(out, &sums, sizeof sums);
}

#include "memory_kernel.inc"

}  // namespace generic

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {

typedef __m256 V;
constexpr std::int64_t lanes = 8;
constexpr int tile_queries = 3;

inline V widen_lanes(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline V widen_lanes(const std::int8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

inline void narrow_lanes(V value, Half* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

inline void sum4(V a, V b, V c, V d, float* out) {
  const V sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

#include "memory_kernel.inc"

}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")
namespace avx512 {

typedef __m512 V;
constexpr std::int64_t lanes = 16;
// The forms with a mask of ones, since GCC 12 warns about its own unmasked ones.
constexpr int tile_queries = 6;

inline V widen_lanes(const Half* from) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline V widen_lanes(const std::int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
}

inline void narrow_lanes(V value, Half* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT));
}

inline __m256 halve(V value) {
  const __m512d both = _mm512_castps_pd(value);
  const __m256d lower = _mm512_maskz_extractf64x4_pd(0xf, both, 0), upper = _mm512_maskz_extractf64x4_pd(0xf, both, 1);
  return _mm256_add_ps(_mm256_castpd_ps(lower), _mm256_castpd_ps(upper));
}

inline void sum4(V a, V b, V c, V d, float* out) {
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(halve(a), halve(b)), _mm256_hadd_ps(halve(c), halve(d)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

#include "memory_kernel.inc"

}  // namespace avx512
#pragma GCC pop_options

#define RECO_X86_KERNELS 1
#endif

namespace {

#define RECO_KERNEL(level)                                                                              \
  {                                                                                                     \
#level, level::lanes, level::half::widen, level::narrow, level::scores, level::half::scores_of_one, \
        level::int8::widen, level::int8::squares, level::int8::scores_of_one                            \
  }
constexpr MemoryKernel generic_kernel RECO_KERNEL(generic);
#ifdef RECO_X86_KERNELS
constexpr MemoryKernel avx2_kernel RECO_KERNEL(avx2);
constexpr MemoryKernel avx512_kernel RECO_KERNEL(avx512);
#endif

}  // namespace

std::vector<const MemoryKernel*> memory_kernels() {
  std::vector<const MemoryKernel*> kernels;
#ifdef RECO_X86_KERNELS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f")) kernels.push_back(&avx512_kernel);
  if (avx2) kernels.push_back(&avx2_kernel);
#endif
  kernels.push_back(&generic_kernel);
  return kernels;
}

const MemoryKernel& memory_kernel() {
  static const MemoryKernel& kernel = *memory_kernels().front();
  return kernel;
}

}  // namespace reco
