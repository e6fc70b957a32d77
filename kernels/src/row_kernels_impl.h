// What row_kernels.h declares, for the instruction set of the file that includes this.
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

constexpr int64_t kGroup = 8;  // rows that are read together: 512 bytes of each panel

inline Ints halves_of(Floats low, Floats high) { return halves_of(to_fp16(low), to_fp16(high)); }

// Rotates the GELU values of a row that two panels have; returns the larger of `most` and each magnitude.
inline Ints rotate_values(uint16_t* left, uint16_t* right, Ints most) {
  Floats a = from_fp16(load_halves(left)), b = from_fp16(load_halves(left + 16));
  Floats c = from_fp16(load_halves(right)), d = from_fp16(load_halves(right + 16));
  rotate(a, b, c, d);
  const Ints ab = halves_of(a, b), cd = halves_of(c, d), all_but_sign = spread_half(0x7fff);
  store(left, ab), store(right, cd);
  return larger_halves(larger_halves(most, both(ab, all_but_sign)), both(cd, all_but_sign));
}

// Rotates the first `rows` rows (at most kGroup) and finds the largest magnitude of each; NaN where there is one: as
// integers, magnitudes sort as their values do and NaN above infinity.
void rotate_group(const StoreGelu& values, int64_t rows, int64_t n, float* largest) {
  Ints most[kGroup] = {};
  const int64_t panel = values.rows * kPanelColumns;
  for (int64_t column = 0; column < n; column += kRotated) {
    uint16_t* const left = values.out + column * values.rows;
    for (int64_t row = 0; row < rows; ++row) {
      uint16_t* const at = left + row * kPanelColumns;
      most[row] = rotate_values(at, at + panel, most[row]);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t bits = largest_of(widen(_mm256_max_epu16(low_half(most[row]), high_half(most[row]))));
    largest[row] = first_of(from_fp16(_mm256_set1_epi16(static_cast<int16_t>(bits))));
  }
}

inline Ints gelu_steps(const uint16_t* values, Floats inverse) {
  return steps_of(from_fp16(load_halves(values)), from_fp16(load_halves(values + 16)), inverse, spread_half(kZeroPoint));
}

void quantize_group(const StoreGelu& values, int64_t rows, int64_t n, const QuantizedOutput& out) {
  constexpr float kGain = kRotationGain * kGeluShrink;  // of the values as they are stored
  float inverse[kGroup];
  rotate_group(values, rows, n, out.scale);
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

void quantize_gelu_rows(const StoreGelu& values, int64_t rows, int64_t n, const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; row += kGroup) {
    StoreGelu group = values;
    group.out += row * kPanelColumns;
    quantize_group(group, rows - row < kGroup ? rows - row : kGroup, n, {out.q + row * n, out.scale + row});
  }
}

}  // namespace
}  // namespace koe5
