#include "row_kernels.h"

#include "rows.h"

namespace koe5 {

void norm_quantize_rows(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* y, uint8_t* q, float* scale) {
  for (int64_t row = 0; row < rows; ++row) {
    norm_row(x + row * width, width, gain, shift, epsilon, y + row * width);
    scale[row] = quantize_row(y + row * width, width, q + row * width);
  }
}

float quantize_heads(const float* x, int64_t heads, int64_t tokens, int64_t depth, uint8_t* q) {
  const int64_t step = tokens * depth;
  __m512i largest = _mm512_setzero_si512();
  for (int64_t head = 0; head < heads; ++head) largest = larger_magnitudes(largest, x + head * step, depth);
  const float scale = scale_of(largest_magnitude(largest));
  for (int64_t head = 0; head < heads; ++head) quantize(x + head * step, depth, scale, q + head * depth);
  return scale;
}

void mean_of_rows(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean) {
  const __m512 count = _mm512_set1_ps(static_cast<float>(rows));
  for (int64_t column = 0; column < columns; column += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t row = 0; row < rows; ++row) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + row * stride + column));
    _mm512_storeu_ps(mean + column, _mm512_div_ps(sum, count));
  }
}

}  // namespace koe5
