// What row_kernels.h declares, for the instruction set of the file that includes this.
#pragma once

#include "row_kernels.h"
#include "rows.h"

namespace koe5 {
namespace {

void norm_quantize_rows(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* y, uint8_t* q, float* scale) {
  for (int64_t row = 0; row < rows; ++row) {
    norm_row(x + row * width, width, gain, shift, epsilon, y + row * width);
    scale[row] = quantize_row(y + row * width, width, q + row * width);
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

inline Ints load_panel_row(const uint16_t* values, int64_t columns) {
  return load_first(values, columns < kPanelColumns ? 8 : 16);
}

// Largest magnitude of each of the first `rows` rows (at most kGroup); NaN where there is one: as integers, magnitudes
// sort as their values do and NaN above infinity.
inline void largest_values(const StoreGelu& values, int64_t rows, int64_t n, float* largest) {
  const Ints all_but_sign = spread_half(0x7fff);
  Ints most[kGroup] = {};
  for (int64_t column = 0; column < n; column += kPanelColumns) {
    const uint16_t* const panel = values.out + column * values.rows;
    for (int64_t row = 0; row < rows; ++row) {
      const Ints value = load_panel_row(panel + row * kPanelColumns, n - column);
      most[row] = larger_halves(most[row], both(value, all_but_sign));
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t bits = largest_of(widen(_mm256_max_epu16(low_half(most[row]), high_half(most[row]))));
    largest[row] = first_of(from_fp16(_mm256_set1_epi16(static_cast<int16_t>(bits))));
  }
}

inline Ints gelu_steps(Ints values, Floats inverse, Ints zero) {
  return steps_of(from_fp16(low_half(values)), from_fp16(high_half(values)), inverse, zero);
}

void quantize_group(const StoreGelu& values, int64_t rows, int64_t n, int32_t zero, const QuantizedOutput& out) {
  const float floor = 0.17f / static_cast<float>(zero);
  const Ints shift = spread_half(zero);
  float inverse[kGroup];
  largest_values(values, rows, n, out.scale);
  for (int64_t row = 0; row < rows; ++row) {
    // The largest magnitude serves as the largest value: below 0.17, where it may be that of a negative value, the
    // floor is larger, since zero is at most 127. NaN is the largest of magnitudes.
    const float scale = out.scale[row] / kGeluShrink / static_cast<float>(255 - zero);
    out.scale[row] = scale < floor ? floor : scale;
    inverse[row] = 1.0f / kGeluShrink / out.scale[row];
  }
  for (int64_t column = 0; column < n; column += 2 * kPanelColumns) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint16_t* const at = values.out + column * values.rows + row * kPanelColumns;
      const int64_t left = n - column;
      const Floats by = spread(inverse[row]);
      const Ints a = gelu_steps(load_panel_row(at, left), by, shift);
      const Ints b = left <= kPanelColumns
                            ? a
                            : gelu_steps(load_panel_row(at + values.rows * kPanelColumns, left - kPanelColumns), by, shift);
      store_bytes(out.q + row * n + column, to_bytes(a, b), left);
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
    norm_quantize_rows(at, with.gain, with.shift, with.epsilon, 1, n, at, out.q + row * n, out.scale + row);
  }
}

void quantize_gelu_rows(const StoreGelu& values, int64_t rows, int64_t n, int32_t zero, const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; row += kGroup) {
    StoreGelu group = values;
    group.out += row * kPanelColumns;
    quantize_group(group, rows - row < kGroup ? rows - row : kGroup, n, zero, {out.q + row * n, out.scale + row});
  }
}

}  // namespace
}  // namespace koe5
