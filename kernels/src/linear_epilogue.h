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

// How sixteen values are stored.
struct PutBf16 {
  inline void operator()(uint16_t* to, __m512 value) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(value));
  }
};

struct PutSums {
  inline void operator()(float* to, __m512 value) const { _mm512_storeu_ps(to, value); }
};

struct PutGelu {
  GeluTable table = GeluTable::load();

  inline void operator()(uint16_t* to, __m512 value) const {
    const __m256i half = _mm512_cvtps_ph(gelu(value, table), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
  }
};

static inline PutBf16 put_of(const StoreBf16&) { return {}; }
static inline PutSums put_of(const StoreSums&) { return {}; }
static inline PutGelu put_of(const StoreGelu&) { return {}; }

// What sums of 64 columns begin with: minus the zero point times the sums of the weights, so that what is added is the
// product of (activation - zero point) and weight.
struct InitialSums {
  alignas(64) int32_t data[64];

  inline void set(const Product& p, int64_t column, int64_t columns) {
    const __m512i zero = _mm512_set1_epi32(-p.zero);
    for (int64_t c = 0; c < columns; c += 16) {
      _mm512_store_si512(data + c, _mm512_mullo_epi32(_mm512_loadu_si512(p.w.sums + column + c), zero));
    }
  }
};

// Turns a block of sums into results, some rows at a time if wanted: while the next sums are being computed.
// value = scale[row] * sum * weight scale + bias.
template <class Store>
class Finisher {
 public:
  inline Finisher(const Product& p, const Store& store) : store_(store), row_scale_(p.scale), scales_(p.w.scales) {}

  inline void begin(const Sums& sums) {
    sums_ = sums;
    done_ = 0;
    for (int64_t c = 0; c < sums.columns; c += 16) {
      const int64_t column = sums.column + c, block = column / store_.width;
      out_[c / 16] = store_.out + (block * store_.rows + sums.row) * store_.width + column % store_.width;
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
    const auto put = put_of(store_);
    const int64_t sixteens = kSixteens == 0 ? sums_.columns / 16 : kSixteens;
    const int64_t stride = sums_.stride, sixteen = sums_.sixteen, width = store_.width;
    const float *row_scale = row_scale_ + sums_.row, *const scales = scales_ + sums_.column;
    const float* const bias = store_.bias + sums_.column;
    for (int64_t row = first; row < last; ++row) {
      const __m512 scale = _mm512_set1_ps(row_scale[row]);
      const int32_t* data = sums_.data + row * stride;
#pragma GCC unroll 4
      for (int64_t i = 0; i < sixteens; ++i, data += sixteen) {
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(data));
        const __m512 product = _mm512_mul_ps(sum, _mm512_loadu_ps(scales + i * 16));
        put(out_[i] + row * width, _mm512_fmadd_ps(product, scale, _mm512_loadu_ps(bias + i * 16)));
      }
    }
  }

  const Store store_;
  const float* const row_scale_;
  const float* const scales_;
  Sums sums_ = {};
  int64_t done_ = 0;
  decltype(Store::out) out_[4] = {};  // of each sixteen, at the first row
};

}  // namespace koe5
