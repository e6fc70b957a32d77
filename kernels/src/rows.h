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

// The larger of each magnitude and those of x, in 16 lanes. As integers, magnitudes sort as their values do and NaN
// above infinity.
inline Ints larger_magnitudes(Ints largest, const float* x, int64_t n) {
  const Ints all_but_sign = spread_int(0x7fffffff);
  Ints other = largest;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    largest = larger_of(largest, both(all_but_sign, load_ints(x + i)));
    other = larger_of(other, both(all_but_sign, load_ints(x + i + 16)));
  }
  if (i < n) largest = larger_of(largest, both(all_but_sign, load_ints(x + i)));
  return larger_of(largest, other);
}

// Of all lanes; NaN where there is one.
inline float largest_magnitude(Ints lanes) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest_of(lanes))));
}

// Rounded 16-bit steps of 32 values, as to_bytes takes them.
inline Ints steps_of(Floats left, Floats right, Floats inverse, Ints zero) {
  return add_halves(pack_halves(rounded(multiply(left, inverse)), rounded(multiply(right, inverse))), zero);
}

// The same from x on, where n values exist.
inline Ints row_steps(const float* x, int64_t n, Floats inverse) {
  return steps_of(n > 0 ? load(x) : zeros(), n > 16 ? load(x + 16) : zeros(), inverse, spread_half(128));
}

// The scale of values up to `largest`: NaN or infinite where that is, and then the 8 bits mean nothing.
inline float scale_of(float largest) {
  const float scale = largest * (1.0f / 127);
  return scale < 1e-12f ? 1e-12f : scale;  // for rows of zeros
}

// q = round(x / scale) + 128, half to even.
inline void quantize(const float* x, int64_t n, float scale, uint8_t* q) {
  const Floats inverse = spread(1.0f / scale);
  for (int64_t i = 0; i < n; i += 64) {
    const Ints bytes = to_bytes(row_steps(x + i, n - i, inverse), row_steps(x + i + 32, n - i - 32, inverse));
    store_bytes(q + i, bytes, n - i);
  }
}

// The same with a scale for which 127 steps are the largest |x|; returns it.
inline float quantize_row(const float* x, int64_t n, uint8_t* q) {
  const float scale = scale_of(largest_magnitude(larger_magnitudes(int_zeros(), x, n)));
  quantize(x, n, scale, q);
  return scale;
}

}  // namespace
}  // namespace koe5
