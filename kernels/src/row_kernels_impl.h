// Implements row_kernels.h for the instruction set of the including file.
#pragma once

#include "row_kernels.h"
#include "rows.h"

namespace koe5 {
namespace {

void norm_quantize_rows(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* rotated, float* y, const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * width;
    const RowNorm norm(x + at, width, gain, shift, epsilon);
    out.scale[row] = norm_quantize_row(x + at, width, norm, y + at, {rotated, kPanelColumns}, out.q + at);
  }
}

float quantize_heads(const float* x, int64_t heads, int64_t tokens, int64_t depth, uint8_t* q) {
  const int64_t step = tokens * depth;
  Ints largest = int_zeros();
  for (int64_t head = 0; head < heads; ++head) largest = larger_magnitudes(largest, x + head * step, depth);
  const float scale = scale_of(largest_magnitude(largest));
  for (int64_t head = 0; head < heads; ++head) quantize(x + head * step, depth, scale, q + head * depth);
  return scale;
}

void mean_of_rows(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean) {
  const Floats count = spread(static_cast<float>(rows));
  for (int64_t column = 0; column < columns; column += 16) {
    Floats sum = zeros();
    for (int64_t row = 0; row < rows; ++row) sum = add(sum, load(x + row * stride + column));
    store(mean + column, divide(sum, count));
  }
}

constexpr int64_t kGroup = 8;  // rows that are processed together: 512 contiguous bytes of each panel

inline Ints halves_of(Floats low, Floats high) { return halves_of(to_fp16(low), to_fp16(high)); }

// Factors for 64 values.
struct Factors {
  Floats a, b, c, d;

  inline explicit Factors(const float* f) : a(load(f)), b(load(f + 16)), c(load(f + 32)), d(load(f + 48)) {}
};

inline Floats multiply_halves(const uint16_t* values, Floats by) {
  return multiply(from_fp16(load_halves(values)), by);
}

// Multiplies a block of 64 values, 32 in each of two panels, by `by` and rotates it. Returns the larger of `most` and
// the magnitudes of the results, per lane.
inline Ints rotate_values(uint16_t* left, uint16_t* right, const Factors& by, Ints most) {
  Floats a = multiply_halves(left, by.a), b = multiply_halves(left + 16, by.b);
  Floats c = multiply_halves(right, by.c), d = multiply_halves(right + 16, by.d);
  rotate(a, b, c, d);
  const Ints ab = halves_of(a, b), cd = halves_of(c, d), all_but_sign = spread_half(0x7fff);
  store(left, ab), store(right, cd);
  return larger_halves(larger_halves(most, both(ab, all_but_sign)), both(cd, all_but_sign));
}

// Multiplies the first `rows` rows (at most kGroup) by `factors` and rotates them. Stores the largest magnitude of each
// row to `largest`, or NaN if the row contains NaN. Compares magnitudes by their bits: as integers, they sort like
// their values, and NaN sorts above infinity.
void rotate_group(const StoreGelu& values, int64_t rows, int64_t n, const float* factors, float* largest) {
  const Factors by(factors);
  Ints most[kGroup] = {};
  const int64_t panel = values.rows * kPanelColumns;
  for (int64_t column = 0; column < n; column += kRotated) {
    uint16_t* const left = values.out + column * values.rows;
    for (int64_t row = 0; row < rows; ++row) {
      uint16_t* const at = left + row * kPanelColumns;
      most[row] = rotate_values(at, at + panel, by, most[row]);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t bits = largest_of(larger_of(widen(low_half(most[row])), widen(high_half(most[row]))));
    largest[row] = first_of(from_fp16(low_half(spread_half(bits))));
  }
}

inline Ints gelu_steps(const uint16_t* values, Floats inverse) {
  return steps_of(from_fp16(load_halves(values)), from_fp16(load_halves(values + 16)), inverse, spread_half(kZeroPoint));
}

void quantize_group(const StoreGelu& values, int64_t rows, int64_t n, const float* factors,
                    const QuantizedOutput& out) {
  constexpr float kGain = kRotationGain * kGeluShrink;  // the stored values are multiplied by this factor
  float inverse[kGroup];
  rotate_group(values, rows, n, factors, out.scale);
  for (int64_t row = 0; row < rows; ++row) {
    out.scale[row] = scale_of(out.scale[row] / kGain);
    inverse[row] = 1.0f / kGain / out.scale[row];
  }
  const int64_t panel = values.rows * kPanelColumns;
  for (int64_t column = 0; column < n; column += kRotated) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint16_t* const at = values.out + column * values.rows + row * kPanelColumns;
      const Floats by = spread(inverse[row]);
      store(out.q + row * n + column, to_bytes(gelu_steps(at, by), gelu_steps(at + panel, by)));
    }
  }
}

// y = x * skip + sums.
void add_row(const float* sums, int64_t panel, const float* x, const float* skip, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const Floats sum = load(sums + i / kPanelColumns * panel + i % kPanelColumns);
    store(y + i, multiply_add(load(x + i), load(skip + i), sum));
  }
}

void add_norm_quantize_rows(const StoreSums& sums, int64_t rows, int64_t n, const AddNorm& with, float* y,
                            const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; ++row) {
    float* const at = y + row * n;
    add_row(sums.out + row * kPanelColumns, sums.rows * kPanelColumns, with.x + row * n, with.skip, n, at);
    const RotatedRow rotated{sums.out + row * kPanelColumns, sums.rows * kPanelColumns};
    const RowNorm norm(at, n, with.gain, with.shift, with.epsilon);
    out.scale[row] = norm_quantize_row(at, n, norm, at, rotated, out.q + row * n);
  }
}

void quantize_gelu_rows(const StoreGelu& values, int64_t rows, int64_t n, const float* factors,
                        const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; row += kGroup) {
    StoreGelu group = values;
    group.out += row * kPanelColumns;
    const int64_t here = rows - row < kGroup ? rows - row : kGroup;
    quantize_group(group, here, n, factors, {out.q + row * n, out.scale + row});
  }
}

}  // namespace
}  // namespace koe5
