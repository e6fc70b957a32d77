// Functions of blocks of rows, one set for AVX512 and one for AVX2. Rows have `width` values, a multiple of 16.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace koe5 {

struct RowKernels {
  // y = norm(x), then q and scale from y, with zero point 128. x and y may be the same.
  void (*norm_quantize)(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* y, uint8_t* q, float* scale);

  // q and scale of each row of x.
  void (*quantize)(const float* x, int64_t rows, int64_t width, uint8_t* q, float* scale);

  // GELU values as StoreGelu (linear_kernels.h) leaves them, in 8 bits with zero point `zero`.
  void (*quantize_gelu)(const uint16_t* x, int64_t rows, int64_t width, int32_t zero, uint8_t* q, float* scale);

  // mean[j] = mean over `rows` rows, `stride` values apart, of their column j < columns, a multiple of 16.
  void (*mean)(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean);
};

extern const RowKernels kAvx512Rows, kAvx2Rows;

static inline const RowKernels& row_kernels(Level level) {
  return level >= Level::avx512_vnni ? kAvx512Rows : kAvx2Rows;
}

}  // namespace koe5
