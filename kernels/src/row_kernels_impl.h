// What row_kernels.h declares, for the instruction set of the file that includes this.
#pragma once

#include "linear_kernels.h"
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

void quantize_rows(const float* x, int64_t rows, int64_t width, uint8_t* q, float* scale) {
  for (int64_t row = 0; row < rows; ++row) scale[row] = quantize_row(x + row * width, width, q + row * width);
}

void quantize_gelu_rows(const uint16_t* x, int64_t rows, int64_t width, int32_t zero, uint8_t* q, float* scale) {
  for (int64_t row = 0; row < rows; ++row) {
    scale[row] = quantize_gelu_row(x + row * width, width, zero, kGeluShrink, q + row * width);
  }
}

void mean_of_rows(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean) {
  const Floats count = spread(static_cast<float>(rows));
  for (int64_t column = 0; column < columns; column += 16) {
    Floats sum = zeros();
    for (int64_t row = 0; row < rows; ++row) sum = add(sum, load(x + row * stride + column));
    store(mean + column, divide(sum, count));
  }
}

}  // namespace
}  // namespace koe5
