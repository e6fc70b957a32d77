// What happens to int32 sums before they leave the registers' neighbourhood. Included by the units of each instruction
// set, so that all levels do the same operations in the same order and give the same bits.
#pragma once

#include <immintrin.h>

#include "gelu.h"
#include "linear_kernels.h"

namespace koe5 {

// A block of int32 sums: `rows` x `columns` (a multiple of 16), beginning at (row, column) of the product.
struct Sums {
  const int32_t* data;
  int64_t stride;
  int64_t row, rows, column, columns;
};

// Calls finish(value, row, column) for 16 columns at a time, value = scale[row] * (sum - zero * sum of weights) *
// weight scale + bias.
template <class Finish>
static inline void dequantize(const Product& p, const Sums& sums, const float* bias, const Finish& finish) {
  for (int64_t c = 0; c < sums.columns; c += 16) {
    const int64_t column = sums.column + c;
    const __m512 scale = _mm512_loadu_ps(p.w.scales + column);
    const __m512i correction =
        _mm512_mullo_epi32(_mm512_loadu_si512(p.w.sums + column), _mm512_set1_epi32(p.zero));
    const __m512 shift = _mm512_loadu_ps(bias + column);
    for (int64_t r = 0; r < sums.rows; ++r) {
      const __m512i sum = _mm512_load_si512(sums.data + r * sums.stride + c);
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, correction)), scale);
      finish(_mm512_fmadd_ps(product, _mm512_set1_ps(p.scale[sums.row + r]), shift), sums.row + r, column);
    }
  }
}

// Sixteen values in bf16, to nearest even; NaN stays NaN.
static inline __m256i to_bf16(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
}

static inline void finish(const Product& p, const Sums& sums, const StoreBf16& to) {
  dequantize(p, sums, to.bias, [&](__m512 value, int64_t row, int64_t column) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.out + row * to.stride + column), to_bf16(value));
  });
}

static inline void finish(const Product& p, const Sums& sums, const StoreAdd& to) {
  dequantize(p, sums, to.bias, [&](__m512 value, int64_t row, int64_t column) {
    const int64_t at = row * to.stride + column;
    const __m512 skip = _mm512_loadu_ps(to.skip + column);
    _mm512_storeu_ps(to.out + at, _mm512_fmadd_ps(_mm512_loadu_ps(to.x + at), skip, value));
  });
}

static inline void finish(const Product& p, const Sums& sums, const StoreGelu& to) {
  const GeluTable table = GeluTable::load();
  dequantize(p, sums, to.bias, [&](__m512 value, int64_t row, int64_t column) {
    _mm512_storeu_ps(to.out + row * to.stride + column, gelu(value, table));
  });
}

}  // namespace koe5
