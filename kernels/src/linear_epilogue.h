// What happens to int32 sums before they leave the registers' neighbourhood. Included by the units of each instruction
// set, so that all levels do the same operations in the same order and give the same bits.
#pragma once

#include "gelu.h"
#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

// A block of int32 sums: `rows` x `columns` (a multiple of 16, at most 64), beginning at (row, column) of the product.
struct Sums {
  const int32_t* data;
  int64_t stride;   // from a row to the next
  int64_t sixteen;  // from 16 columns to the next
  int64_t row, rows, column, columns;
};

// Sixteen values in bf16, to nearest even; NaN stays NaN.
inline __m256i to_bf16(Floats x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const Ints bits = bits_of(x);
  const Ints odd = both(shift_right<16>(bits), spread_int(1));
  const Ints nearest = add(bits, add(odd, spread_int(0x7fff)));
  return upper_halves(where_nan(x, spread_int(0x7fc00000), nearest));
#endif
}

// What a Store does with the values of one row after another, 16 at a time, from (row, column) of the product on.
struct WriteBf16 {
  uint16_t* out;
  int64_t stride;

  inline WriteBf16(const StoreBf16& to, int64_t row, int64_t column)
      : out(to.out + row * to.stride + column), stride(to.stride) {}
  inline void put(int64_t at, Floats value) const {
    store_halves(out + at, to_bf16(value));
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
  inline void put(int64_t at, Floats value) const {
    store(out + at, multiply_add(load(x + at), load(skip + at), value));
  }
  inline void next() { out += stride, x += stride; }
};

struct WriteGelu {
  uint16_t* out;
  int64_t stride;
  const GeluTable table{kGeluTable};

  inline WriteGelu(const StoreGelu& to, int64_t row, int64_t column)
      : out(to.out + row * to.stride + column), stride(to.stride) {}
  inline void put(int64_t at, Floats value) const {
    const Floats small = multiply(gelu(value, table), spread(kGeluShrink));
    store_halves(out + at, to_fp16(small));
  }
  inline void next() { out += stride; }
};

inline WriteBf16 writer(const StoreBf16& to, int64_t row, int64_t column) { return {to, row, column}; }
inline WriteAdd writer(const StoreAdd& to, int64_t row, int64_t column) { return {to, row, column}; }
inline WriteGelu writer(const StoreGelu& to, int64_t row, int64_t column) { return {to, row, column}; }

// Turns a block of sums into results, some rows at a time if wanted: while the next sums are being computed.
// value = scale[row] * (sum - zero * sum of weights) * weight scale + bias.
template <class Store>
class Finisher {
 public:
  inline Finisher(const Product& p, const Store& store)
      : store_(store), row_scale_(p.scale), w_(p.w), zero_(spread_int(p.zero)) {}

  inline void begin(const Sums& sums) {
    sums_ = sums;
    done_ = 0;
    for (int64_t c = 0; c < sums.columns; c += 16) {
      const Ints weights = load_ints(w_.sums + sums.column + c);
      store(correction_ + c, multiply(weights, zero_));
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
      const Floats scale = spread(*row_scale);
      const int32_t* data = row;
#pragma GCC unroll 4
      for (int64_t c = 0; c < columns; c += 16, data += sixteen) {
        const Ints sum = subtract(load_ints(data), load_ints(correction_ + c));
        const Floats product = multiply(to_floats(sum), load(scales + c));
        write.put(c, multiply_add(product, scale, load(bias + c)));
      }
    }
  }

  alignas(64) int32_t correction_[64];
  const Store store_;
  const float* const row_scale_;
  const WeightView w_;
  const Ints zero_;
  Sums sums_ = {};
  int64_t done_ = 0;
};

}  // namespace
}  // namespace koe5
