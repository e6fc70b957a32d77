// What happens to int32 sums before they leave the registers' neighbourhood. Included by the units of each instruction
// set, so that all levels do the same operations in the same order and give the same bits.
#pragma once

#include <immintrin.h>

#include "gelu.h"
#include "linear_kernels.h"

namespace koe5 {

// A block of int32 sums: `rows` x `columns` (a multiple of 16, at most 64), beginning at (row, column) of the product.
struct Sums {
  const int32_t* data;
  int64_t stride;   // from a row to the next
  int64_t sixteen;  // from 16 columns to the next
  int64_t row, rows, column, columns;
};

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

// What a Store does with the values of one row after another, 16 at a time, from (row, column) of the product on.
struct WriteBf16 {
  uint16_t* out;
  int64_t stride;

  inline WriteBf16(const StoreBf16& to, int64_t row, int64_t column)
      : out(to.out + row * to.stride + column), stride(to.stride) {}
  inline void put(int64_t at, __m512 value) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), to_bf16(value));
  }
  inline void next() { out += stride; }
};

struct WriteAdd {
  float* out;
  const float *x, *skip;
  int64_t stride;

  inline WriteAdd(const StoreAdd& to, int64_t row, int64_t column)
      : out(to.out + row * to.stride + column), x(to.x + row * to.stride + column), skip(to.skip + column),
        stride(to.stride) {}
  inline void put(int64_t at, __m512 value) const {
    _mm512_storeu_ps(out + at, _mm512_fmadd_ps(_mm512_loadu_ps(x + at), _mm512_loadu_ps(skip + at), value));
  }
  inline void next() { out += stride, x += stride; }
};

struct WriteGelu {
  uint16_t* out;
  int64_t stride;
  GeluTable table = GeluTable::load();

  inline WriteGelu(const StoreGelu& to, int64_t row, int64_t column)
      : out(to.out + row * to.stride + column), stride(to.stride) {}
  inline void put(int64_t at, __m512 value) const {
    const __m512 small = _mm512_mul_ps(gelu(value, table), _mm512_set1_ps(kGeluShrink));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), _mm512_cvtps_ph(small, _MM_FROUND_TO_NEAREST_INT));
  }
  inline void next() { out += stride; }
};

static inline WriteBf16 writer(const StoreBf16& to, int64_t row, int64_t column) { return {to, row, column}; }
static inline WriteAdd writer(const StoreAdd& to, int64_t row, int64_t column) { return {to, row, column}; }
static inline WriteGelu writer(const StoreGelu& to, int64_t row, int64_t column) { return {to, row, column}; }

// Turns a block of sums into results, some rows at a time if wanted: while the next sums are being computed.
// value = scale[row] * (sum - zero * sum of weights) * weight scale + bias.
template <class Store>
class Finisher {
 public:
  inline Finisher(const Product& p, const Store& store)
      : store_(store), row_scale_(p.scale), w_(p.w), zero_(_mm512_set1_epi32(p.zero)) {}

  inline void begin(const Sums& sums) {
    sums_ = sums;
    done_ = 0;
    for (int64_t c = 0; c < sums.columns; c += 16) {
      const __m512i weights = _mm512_loadu_si512(w_.sums + sums.column + c);
      _mm512_store_si512(correction_ + c, _mm512_mullo_epi32(weights, zero_));
    }
  }

  inline void advance(int64_t rows) {
    const int64_t first = done_, left = sums_.rows - first, last = left < rows ? sums_.rows : first + rows;
    done_ = last;
    if (sums_.columns == 32) {
      finish<2>(first, last);
    } else if (sums_.columns == 64) {
      finish<4>(first, last);
    } else {
      finish<0>(first, last);
    }
  }

  inline void complete() { advance(sums_.rows); }

 private:
  // kSixteens: how many times 16 columns; 0 where that is not known beforehand.
  template <int kSixteens>
  inline void finish(int64_t first, int64_t last) {
    auto write = writer(store_, sums_.row + first, sums_.column);
    const int64_t columns = kSixteens == 0 ? sums_.columns : kSixteens * 16;
    const int64_t stride = sums_.stride, sixteen = sums_.sixteen;
    const float *row_scale = row_scale_ + sums_.row + first, *const scales = w_.scales + sums_.column;
    const float* const bias = store_.bias + sums_.column;
    const int32_t* row = sums_.data + first * stride;
    for (int64_t r = first; r < last; ++r, row += stride, ++row_scale, write.next()) {
      const __m512 scale = _mm512_set1_ps(*row_scale);
      const int32_t* data = row;
#pragma GCC unroll 4
      for (int64_t c = 0; c < columns; c += 16, data += sixteen) {
        const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(data), _mm512_load_si512(correction_ + c));
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(scales + c));
        write.put(c, _mm512_fmadd_ps(product, scale, _mm512_loadu_ps(bias + c)));
      }
    }
  }

  alignas(64) int32_t correction_[64];
  const Store store_;
  const float* const row_scale_;
  const WeightView w_;
  const __m512i zero_;
  Sums sums_ = {};
  int64_t done_ = 0;
};

}  // namespace koe5
