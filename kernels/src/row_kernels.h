// Blocks of rows, for operators that do nothing else. Defined in row_kernels.cc, which is compiled for AVX512.
#pragma once

#include <cstdint>

namespace koe5 {

// y = norm(x), then q and scale from y; rows of `width` values, a multiple of 16.
void norm_quantize_rows(const float* x, const float* gain, const float* shift, float epsilon, int64_t rows,
                        int64_t width, float* y, uint8_t* q, float* scale);

// The row q u8[heads * depth] of a token and its scale, from its row in each head of x f32[heads, tokens, depth].
float quantize_heads(const float* x, int64_t heads, int64_t tokens, int64_t depth, uint8_t* q);

// mean[j] = mean over `rows` rows, `stride` values apart, of their column j < columns, a multiple of 16.
void mean_of_rows(const float* x, int64_t rows, int64_t stride, int64_t columns, float* mean);

}  // namespace koe5
