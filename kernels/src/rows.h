// Functions of one row of fp32 values: layer norm, quantisation to 8 bits. Local to the file that includes it: see
// sixteen.h.
// The order of each sum depends on the row's length alone. n is a multiple of 16.
#pragma once

#include <cstdint>

#include "sixteen.h"

namespace koe5 {
namespace {

// Sum of a row's values; each lane of four accumulators takes every 64th value.
inline float row_sum(const float* x, int64_t n) {
  Floats a = zeros(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    a = add(a, load(x + i));
    b = add(b, load(x + i + 16));
    c = add(c, load(x + i + 32));
    d = add(d, load(x + i + 48));
  }
  for (; i < n; i += 16) a = add(a, load(x + i));
  return sum_of(add(add(a, b), add(c, d)));
}

inline Floats add_square(Floats sum, const float* x, Floats mean) {
  const Floats distance = subtract(load(x), mean);
  return multiply_add(distance, distance, sum);
}

// Sum of (x - mean)^2.
inline float row_squares(const float* x, int64_t n, float mean) {
  const Floats m = spread(mean);
  Floats a = zeros(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    a = add_square(a, x + i, m);
    b = add_square(b, x + i + 16, m);
    c = add_square(c, x + i + 32, m);
    d = add_square(d, x + i + 48, m);
  }
  for (; i < n; i += 16) a = add_square(a, x + i, m);
  return sum_of(add(add(a, b), add(c, d)));
}

// y = (x - mean) / sqrt(variance + epsilon) * gain + shift, in two passes over x (variance of the distances, so that
// a large mean costs no digits). x and y may be the same.
inline void norm_row(const float* x, int64_t n, const float* gain, const float* shift, float epsilon,
                            float* y) {
  const float mean = row_sum(x, n) / static_cast<float>(n);
  const float variance = row_squares(x, n, mean) / static_cast<float>(n);
  const Floats m = spread(mean);
  const Floats inverse = spread(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance + epsilon))));
  for (int64_t i = 0; i < n; i += 16) {
    const Floats unit = multiply(subtract(load(x + i), m), inverse);
    store(y + i, multiply_add(unit, load(gain + i), load(shift + i)));
  }
}

// Largest |x|; NaN where the row has one: as integers, magnitudes sort as their values do and NaN above infinity.
inline float row_magnitude(const float* x, int64_t n) {
  const Ints all_but_sign = spread_int(0x7fffffff);
  Ints a = int_zeros(), b = a;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    a = larger_of(a, both(all_but_sign, load_ints(x + i)));
    b = larger_of(b, both(all_but_sign, load_ints(x + i + 16)));
  }
  if (i < n) a = larger_of(a, both(all_but_sign, load_ints(x + i)));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest_of(larger_of(a, b)))));
}

// q = round(x / scale) + 128, half to even, with scale = largest |x| / 127 (at least 1e-12, for rows of zeros), which
// is returned: NaN or infinite where the row is not finite, and then q means nothing.
inline float quantize_row(const float* x, int64_t n, uint8_t* q) {
  const float largest = row_magnitude(x, n) * (1.0f / 127);
  const float scale = largest < 1e-12f ? 1e-12f : largest;
  const Floats inverse = spread(1.0f / scale);
  const Ints zero = spread_int(128);
  for (int64_t i = 0; i < n; i += 16) {
    store_bytes(q + i, add(rounded(multiply(load(x + i), inverse)), zero));
  }
  return scale;
}

// Largest |x| of fp16 values; NaN where there is one.
inline float largest_fp16(const uint16_t* x, int64_t n) {
  const __m256i all_but_sign = _mm256_set1_epi16(0x7fff);
  __m256i largest = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 16) {
    largest = _mm256_max_epu16(largest, _mm256_and_si256(load_halves(x + i), all_but_sign));
  }
  return first_of(from_fp16(_mm256_set1_epi16(static_cast<int16_t>(largest_of(widen(largest))))));
}

// q of GELU values x, which are fp16 and `shrink` times what they stand for; returns the scale.
inline float quantize_gelu_row(const uint16_t* x, int64_t n, int32_t zero, float shrink, uint8_t* q) {
  // The largest magnitude serves as the largest value: below 0.17, where it may be that of a negative value, the
  // floor is larger, since zero is at most 127. NaN is the largest of magnitudes.
  const float largest = largest_fp16(x, n) / shrink / static_cast<float>(255 - zero);
  const float least = 0.17f / static_cast<float>(zero);
  const float scale = largest < least ? least : largest;
  const Floats inverse = spread(1.0f / shrink / scale);
  const Ints shift = spread_int(zero), none = int_zeros();
  for (int64_t i = 0; i < n; i += 16) {
    const Ints step = add(rounded(multiply(from_fp16(load_halves(x + i)), inverse)), shift);
    store_bytes(q + i, larger_of(step, none));
  }
  return scale;
}

}  // namespace
}  // namespace koe5
