// Functions of one row of fp32 values: layer norm, quantisation to 8 bits. AVX512 F, BW, DQ and VL only.
// Everything is local to the file that includes it: a copy compiled with AVX512 must never stand in, at link time, for
// one that another CPU calls.
// The order of each sum depends on the row's length alone. n is a multiple of 16.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace koe5 {
namespace {

// Sum of a row's values; each lane of four accumulators takes every 64th value.
inline float row_sum(const float* x, int64_t n) {
  __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    a = _mm512_add_ps(a, _mm512_loadu_ps(x + i));
    b = _mm512_add_ps(b, _mm512_loadu_ps(x + i + 16));
    c = _mm512_add_ps(c, _mm512_loadu_ps(x + i + 32));
    d = _mm512_add_ps(d, _mm512_loadu_ps(x + i + 48));
  }
  for (; i < n; i += 16) a = _mm512_add_ps(a, _mm512_loadu_ps(x + i));
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
}

inline __m512 add_square(__m512 sum, const float* x, __m512 mean) {
  const __m512 distance = _mm512_sub_ps(_mm512_loadu_ps(x), mean);
  return _mm512_fmadd_ps(distance, distance, sum);
}

// Sum of (x - mean)^2.
inline float row_squares(const float* x, int64_t n, float mean) {
  const __m512 m = _mm512_set1_ps(mean);
  __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    a = add_square(a, x + i, m);
    b = add_square(b, x + i + 16, m);
    c = add_square(c, x + i + 32, m);
    d = add_square(d, x + i + 48, m);
  }
  for (; i < n; i += 16) a = add_square(a, x + i, m);
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
}

// y = (x - mean) / sqrt(variance + epsilon) * gain + shift, in two passes over x (variance of the distances, so that
// a large mean costs no digits). x and y may be the same.
inline void norm_row(const float* x, int64_t n, const float* gain, const float* shift, float epsilon,
                            float* y) {
  const float mean = row_sum(x, n) / static_cast<float>(n);
  const float variance = row_squares(x, n, mean) / static_cast<float>(n);
  const __m512 m = _mm512_set1_ps(mean);
  const __m512 inverse = _mm512_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance + epsilon))));
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), m), inverse);
    _mm512_storeu_ps(y + i, _mm512_fmadd_ps(unit, _mm512_loadu_ps(gain + i), _mm512_loadu_ps(shift + i)));
  }
}

// Largest |x|; NaN where the row has one: as integers, magnitudes sort as their values do and NaN above infinity.
inline float row_magnitude(const float* x, int64_t n) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i a = _mm512_setzero_si512(), b = a;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    a = _mm512_max_epi32(a, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
    b = _mm512_max_epi32(b, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i + 16)));
  }
  if (i < n) a = _mm512_max_epi32(a, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_max_epi32(a, b)))));
}

// q = round(x / scale) + 128, half to even, with scale = largest |x| / 127 (at least 1e-12, for rows of zeros), which
// is returned: NaN or infinite where the row is not finite, and then q means nothing.
inline float quantize_row(const float* x, int64_t n, uint8_t* q) {
  const float largest = row_magnitude(x, n) * (1.0f / 127);
  const float scale = largest < 1e-12f ? 1e-12f : largest;
  const __m512 inverse = _mm512_set1_ps(1.0f / scale);
  const __m512i zero = _mm512_set1_epi32(128);
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtusepi32_epi8(_mm512_add_epi32(rounded, zero)));
  }
  return scale;
}

}  // namespace
}  // namespace koe5
