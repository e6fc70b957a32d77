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

void quantize_rows(const float* x, int64_t rows, int64_t width, uint8_t* q, float* scale) {
  for (int64_t row = 0; row < rows; ++row) scale[row] = quantize_row(x + row * width, width, q + row * width);
}

}  // namespace koe5
