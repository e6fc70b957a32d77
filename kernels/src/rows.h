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

// The larger of each magnitude and those of x, in 16 lanes. As integers, magnitudes sort as their values do and NaN
// above infinity.
inline __m512i larger_magnitudes(__m512i largest, const float* x, int64_t n) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i other = largest;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    largest = _mm512_max_epi32(largest, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
    other = _mm512_max_epi32(other, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i + 16)));
  }
  if (i < n) largest = _mm512_max_epi32(largest, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + i)));
  return _mm512_max_epi32(largest, other);
}

// Of all lanes; NaN where there is one.
inline float largest_magnitude(__m512i lanes) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(lanes))));
}

// Packing works within 128-bit lanes: a and b hold [first 4 of a sixteen, first 4 of the next] in their first lane and
// so on. Returns 64 bytes in order, from 0 to 255 by saturation.
inline __m512i to_bytes(__m512i a, __m512i b) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b));
}

// The first n bytes, all if n is 64 or more.
inline void store_bytes(uint8_t* to, __m512i bytes, int64_t n) {
  _mm512_mask_storeu_epi8(to, n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1, bytes);
}

// Rounded 16-bit steps of 32 values from x on, of which n exist, for to_bytes.
inline __m512i row_steps(const float* x, int64_t n, __m512 inverse) {
  const __m512 left = n > 0 ? _mm512_loadu_ps(x) : _mm512_setzero_ps();
  const __m512 right = n > 16 ? _mm512_loadu_ps(x + 16) : _mm512_setzero_ps();
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(left, inverse));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(right, inverse));
  return _mm512_add_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(128));
}

// The scale of values up to `largest`: NaN or infinite where that is, and then the 8 bits mean nothing.
inline float scale_of(float largest) {
  const float scale = largest * (1.0f / 127);
  return scale < 1e-12f ? 1e-12f : scale;  // for rows of zeros
}

// q = round(x / scale) + 128, half to even.
inline void quantize(const float* x, int64_t n, float scale, uint8_t* q) {
  const __m512 inverse = _mm512_set1_ps(1.0f / scale);
  for (int64_t i = 0; i < n; i += 64) {
    const __m512i bytes = to_bytes(row_steps(x + i, n - i, inverse), row_steps(x + i + 32, n - i - 32, inverse));
    store_bytes(q + i, bytes, n - i);
  }
}

// The same with a scale for which 127 steps are the largest |x|; returns it.
inline float quantize_row(const float* x, int64_t n, uint8_t* q) {
  const float scale = scale_of(largest_magnitude(larger_magnitudes(_mm512_setzero_si512(), x, n)));
  quantize(x, n, scale, q);
  return scale;
}

}  // namespace
}  // namespace koe5
