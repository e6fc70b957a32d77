// Functions of blocks of rows, one set for AVX512 and one for AVX2. Rows have `width` values, a multiple of 16.
#pragma once

#include <cstdint>

#include "cpu.h"
#include "linear_kernels.h"

namespace koe5 {

struct RowKernels {
  // y f32[rows, width] = norm(x), and y rotated in 8 bits; `rotated` is scratch for a row. width is a multiple of 64.
  void (*norm_quantize)(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* rotated, float* y, const QuantizedOutput& out);

  // The row q u8[heads * depth] of a token and its scale, from its row in each head of x f32[heads, tokens, depth].
  float (*quantize_heads)(const float* x, int64_t heads, int64_t tokens, int64_t depth, uint8_t* q);

  // mean[j] = mean over `rows` rows, `stride` values apart, of their column j < columns, a multiple of 16.
  void (*mean)(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean);

  // y f32[rows, n] of the first `rows` rows of sums and of `with.x`, and y rotated in 8 bits; overwrites the sums. n is a
  // multiple of 64.
  void (*add_norm_quantize)(const StoreSums& sums, int64_t rows, int64_t n, const AddNorm& with, float* y,
                            const QuantizedOutput& out);

  // The first `rows` rows of GELU values rotated in 8 bits; overwrites the values. n is a multiple of 64.
  void (*quantize_gelu)(const StoreGelu& values, int64_t rows, int64_t n, const QuantizedOutput& out);
};

extern const RowKernels kAvx512Rows, kAvx2Rows;

static inline const RowKernels& row_kernels(Level level) {
  return level >= Level::avx512_vnni ? kAvx512Rows : kAvx2Rows;
}

}  // namespace koe5
