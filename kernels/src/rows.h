// Functions on one row of n fp32 values: layer norm, rotation, quantization to 8 bits. n is a multiple of 16. The order
// of additions depends only on n. Local to the file that includes it; see sixteen.h.
#pragma once

#include <cstdint>

#include "linear_kernels.h"
#include "rotation.h"
#include "sixteen.h"

namespace koe5 {
namespace {

// Sum of a row's values. Each lane of four accumulators takes every 64th value.
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

// A layer norm: y = (x - mean) * inverse * gain + shift. The mean is computed first, then the variance from the
// distances to the mean, so that a large mean costs no precision.
struct RowNorm {
  Floats mean, inverse;
  const float *gain, *shift;

  inline RowNorm(const float* x, int64_t n, const float* gain_, const float* shift_, float epsilon)
      : gain(gain_), shift(shift_) {
    const float middle = row_sum(x, n) / static_cast<float>(n);
    const float variance = row_squares(x, n, middle) / static_cast<float>(n);
    mean = spread(middle);
    inverse = spread(1.0f / root_of(variance + epsilon));
  }

  KOE5_INLINE Floats of(const float* x, int64_t i) const {
    const Floats unit = multiply(subtract(load(x + i), mean), inverse);
    return multiply_add(unit, load(gain + i), load(shift + i));
  }
};

// Returns the larger of `largest` and the magnitudes of x, per lane. Compares magnitudes by their bits: as integers,
// they sort like their values, and NaN sorts above infinity.
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

// Returns the largest of 16 magnitudes, given by their bits, or NaN if one of them is NaN.
inline float largest_magnitude(Ints lanes) {
  return first_of(floats_of_bits(spread_int(largest_of(lanes))));
}

// Multiplies 32 values by `inverse`, rounds them to 16-bit integers and adds `zero`. The order is the one that to_bytes
// expects.
inline Ints steps_of(Floats left, Floats right, Floats inverse, Ints zero) {
  return add_halves(pack_halves(rounded(multiply(left, inverse)), rounded(multiply(right, inverse))), zero);
}

// Calls steps_of for 32 values at x. Only the first n exist; the others count as 0.
inline Ints row_steps(const float* x, int64_t n, Floats inverse) {
  return steps_of(n > 0 ? load(x) : zeros(), n > 16 ? load(x + 16) : zeros(), inverse, spread_half(kZeroPoint));
}

// Returns the scale with which `largest` becomes 127. If it is NaN or infinite, the 8-bit values are undefined.
inline float scale_of(float largest) {
  const float scale = largest * (1.0f / 127);
  return scale < 1e-12f ? 1e-12f : scale;  // prevents a division by zero in rows of zeros
}

// q = round(x / scale) + 128, half to even.
inline void quantize(const float* x, int64_t n, float scale, uint8_t* q) {
  const Floats inverse = spread(1.0f / scale);
  for (int64_t i = 0; i < n; i += 64) {
    const Ints bytes = to_bytes(row_steps(x + i, n - i, inverse), row_steps(x + i + 32, n - i - 32, inverse));
    store_bytes(q + i, bytes, n - i);
  }
}

KOE5_INLINE Ints larger_magnitude(Ints largest, Floats x) {
  return larger_of(largest, both(spread_int(0x7fffffff), bits_of(x)));
}

// Memory for the rotated values of a row, which are kept in panels of 32 values until the row's scale is known.
struct RotatedRow {
  float* first;
  int64_t panel;  // values between the starts of two panels

  // Returns the address of value i. The index i is a multiple of 32.
  KOE5_INLINE float* at(int64_t i) const { return first + i / kPanelColumns * panel; }
};

// Stores norm(x) to y, and kRotationGain times the rotated norm(x) to `rotated`. Returns the largest magnitude in
// `rotated`. n is a multiple of 64. x and y may be the same.
inline float norm_and_rotate(const float* x, int64_t n, const RowNorm& norm, float* y, const RotatedRow& rotated) {
  Ints largest = int_zeros();
  for (int64_t i = 0; i < n; i += kRotated) {
    Floats a = norm.of(x, i), b = norm.of(x, i + 16), c = norm.of(x, i + 32), d = norm.of(x, i + 48);
    store(y + i, a), store(y + i + 16, b), store(y + i + 32, c), store(y + i + 48, d);
    rotate(a, b, c, d);
    float *const left = rotated.at(i), *const right = rotated.at(i + 32);
    store(left, a), store(left + 16, b), store(right, c), store(right + 16, d);
    largest = larger_magnitude(larger_magnitude(largest, a), b);
    largest = larger_magnitude(larger_magnitude(largest, c), d);
  }
  return largest_magnitude(largest);
}

// y = norm(x); q = round(rotated y / scale) + 128. Returns the scale, with which the largest magnitude becomes 127.
// `rotated` is scratch memory.
inline float norm_quantize_row(const float* x, int64_t n, const RowNorm& norm, float* y, const RotatedRow& rotated,
                               uint8_t* q) {
  const float scale = scale_of(norm_and_rotate(x, n, norm, y, rotated) / kRotationGain);
  const Floats inverse = spread(1.0f / kRotationGain / scale);
  const Ints zero = spread_half(kZeroPoint);
  for (int64_t i = 0; i < n; i += kRotated) {
    const float *const left = rotated.at(i), *const right = rotated.at(i + 32);
    store(q + i, to_bytes(steps_of(load(left), load(left + 16), inverse, zero),
                          steps_of(load(right), load(right + 16), inverse, zero)));
  }
  return scale;
}

}  // namespace
}  // namespace koe5
