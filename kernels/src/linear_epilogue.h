// Turns int32 sums into results while they are still in cache. Included by the source file of each instruction set, so
// that all do the same operations in the same order.
#pragma once

#include "gelu.h"
#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

// A block of int32 sums: `rows` x `columns` (a multiple of 16, at most 64), starting at (row, column) of the product.
struct Sums {
  const int32_t* data;
  int64_t stride;   // distance between rows
  int64_t sixteen;  // distance between groups of 16 columns
  int64_t row, rows, column, columns;
};

// Rounds sixteen values to bf16, to nearest even; NaN stays NaN.
inline Halves to_bf16(Floats x) {
#ifdef __AVX512BF16__
  return (Halves)_mm512_cvtneps_pbh(x);
#else
  const Ints bits = bits_of(x);
  const Ints odd = both(shift_right<16>(bits), spread_int(1));
  const Ints nearest = add(bits, add(odd, spread_int(0x7fff)));
  return upper_halves(where_nan(x, spread_int(0x7fc00000), nearest));
#endif
}

// PutX converts and stores sixteen values for the output StoreX of linear_kernels.h.
struct PutBf16 {
  inline void operator()(uint16_t* to, Floats value) const {
    store_halves(to, to_bf16(value));
  }
};

struct PutSums {
  inline void operator()(float* to, Floats value) const { store(to, value); }
};

struct PutGelu {
  const GeluTable table;

  inline void operator()(uint16_t* to, Floats value) const {
    store_halves(to, to_fp16(gelu(value, table)));
  }
};

inline PutBf16 put_of(const StoreBf16&) { return {}; }
inline PutSums put_of(const StoreSums&) { return {}; }
inline PutGelu put_of(const StoreGelu&) { return {}; }

// Initial sums of 64 columns: minus the zero point times the column sums of the weights. A final sum is then the sum of
// (activation - zero point) x weight.
struct InitialSums {
  alignas(64) int32_t data[64];

  inline void set(const Product& p, int64_t column, int64_t columns) {
    const Ints zero = spread_int(-kZeroPoint);
    for (int64_t c = 0; c < columns; c += 16) {
      store(data + c, multiply(load_ints(p.w.sums + column + c), zero));
    }
  }
};

// Turns a block of sums into results: value = scale[row] * sum * weight scale + bias. The caller can do this a few rows
// at a time, between the instructions that compute the next sums.
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
  // kSixteens: number of groups of 16 columns; 0 if it is known only at run time.
  template <int kSixteens>
  inline void finish(int64_t first, int64_t last) {
    const auto put = put_of(store_);
    const int64_t sixteens = kSixteens == 0 ? sums_.columns / 16 : kSixteens;
    const int64_t stride = sums_.stride, sixteen = sums_.sixteen, width = store_.width;
    const float *row_scale = row_scale_ + sums_.row, *const scales = scales_ + sums_.column;
    const float* const bias = store_.bias + sums_.column;
    for (int64_t row = first; row < last; ++row) {
      const Floats scale = spread(row_scale[row]);
      const int32_t* data = sums_.data + row * stride;
#pragma GCC unroll 4
      for (int64_t i = 0; i < sixteens; ++i, data += sixteen) {
        const Floats sum = to_floats(load_ints(data));
        const Floats product = multiply(sum, load(scales + i * 16));
        put(out_[i] + row * width, multiply_add(product, scale, load(bias + i * 16)));
      }
    }
  }

  const Store store_;
  const float* const row_scale_;
  const float* const scales_;
  Sums sums_ = {};
  int64_t done_ = 0;
  decltype(Store::out) out_[4] = {};  // output of each group of 16 columns, at the first row
};

}  // namespace
}  // namespace koe5
