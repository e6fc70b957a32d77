// Functions on rows of fp32 or fp16 values: layer norm, rotation, quantization and mean pooling. Compiled for AVX512,
// AVX2 and NEON.
#pragma once

#include <cstdint>

#include "cpu.h"
#include "linear_kernels.h"

namespace koe5 {

struct RowKernels {
  // y f32[rows, width] = norm(x). out = y, rotated and quantized to 8 bits. `rotated` is scratch memory for one row.
  // width is a multiple of 64.
  void (*norm_quantize)(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* rotated, float* y, const QuantizedOutput& out);

  // Quantizes one token of x f32[heads, tokens, depth] to q u8[heads * depth] and returns its scale. x points to the
  // token's values in the first head. depth is a multiple of 16.
  float (*quantize_heads)(const float* x, int64_t heads, int64_t tokens, int64_t depth, uint8_t* q);

  // mean[j] = mean of column j over `rows` rows that are `stride` values apart. columns is a multiple of 16.
  void (*mean)(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean);

  // y f32[rows, n] = norm(with.x * with.skip + sums) for the first `rows` rows. out = y, rotated and quantized to 8
  // bits. Overwrites the sums. n is a multiple of 64.
  void (*add_norm_quantize)(const StoreSums& sums, int64_t rows, int64_t n, const AddNorm& with, float* y,
                            const QuantizedOutput& out);

  // Multiplies each block of 64 values of the first `rows` rows by `factors` f32[64], rotates it and quantizes it to 8
  // bits. Overwrites the values. n is a multiple of 64.
  void (*quantize_gelu)(const StoreGelu& values, int64_t rows, int64_t n, const float* factors,
                        const QuantizedOutput& out);
};

extern const RowKernels kAvx512Rows, kAvx2Rows, kNeonRows;

#if defined(__aarch64__)
static inline const RowKernels& row_kernels(Level) { return kNeonRows; }
#else
static inline const RowKernels& row_kernels(Level level) {
  return level >= Level::avx512_vnni ? kAvx512Rows : kAvx2Rows;
}
#endif

}  // namespace koe5
