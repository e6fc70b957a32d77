// Rotation of 64 values before they are rounded to 8 bits. It spreads a large value over all 64, which reduces the
// row's scale and therefore the rounding error. Local to the file that includes it; see sixteen.h.
//
// The rotation is the Kronecker product of three matrices M (below), divided by 8: a Walsh-Hadamard transform, which
// takes 6 additions per value. In this form of the transform, all rows have the same sum, so that it also spreads the
// mean. Result 16j + 4k + i is the sum over a, b, c of M[i][a] M[j][b] M[k][c] / 8 times value 16a + 4b + c. This is
// the order in which `rotate` leaves the results in registers. The exporter rotates the weights in the same order
// (rotate.py).
#pragma once

#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

// `rotate` does not divide by 8, so its results are the rotation multiplied by this factor.
constexpr float kRotationGain = 8;

//     1  1  1 -1
// M = 1 -1  1  1
//     1  1 -1  1
//    -1  1  1  1
KOE5_INLINE void combine(Floats& a, Floats& b, Floats& c, Floats& d) {
  const Floats ab = add(a, b), a_b = subtract(a, b), cd = add(c, d), c_d = subtract(c, d);
  a = add(ab, c_d);
  b = add(a_b, cd);
  c = subtract(ab, c_d);
  d = subtract(cd, a_b);
}

// The 128-bit quarters with the same index in the four registers form a 4 x 4 matrix. Transposes the four matrices.
KOE5_INLINE void exchange_values(Floats& a, Floats& b, Floats& c, Floats& d) {
  const Ints ab_low = interleave_low32(bits_of(a), bits_of(b)), ab_high = interleave_high32(bits_of(a), bits_of(b));
  const Ints cd_low = interleave_low32(bits_of(c), bits_of(d)), cd_high = interleave_high32(bits_of(c), bits_of(d));
  a = floats_of_bits(interleave_low64(ab_low, cd_low));
  b = floats_of_bits(interleave_high64(ab_low, cd_low));
  c = floats_of_bits(interleave_low64(ab_high, cd_high));
  d = floats_of_bits(interleave_high64(ab_high, cd_high));
}

// Transposes the 4 x 4 matrix whose elements are the 128-bit quarters of the four registers.
KOE5_INLINE void exchange_quarters(Floats& a, Floats& b, Floats& c, Floats& d) {
  const Ints ab_even = even_quarters(bits_of(a), bits_of(b)), ab_odd = odd_quarters(bits_of(a), bits_of(b));
  const Ints cd_even = even_quarters(bits_of(c), bits_of(d)), cd_odd = odd_quarters(bits_of(c), bits_of(d));
  a = floats_of_bits(even_quarters(ab_even, cd_even));
  b = floats_of_bits(even_quarters(ab_odd, cd_odd));
  c = floats_of_bits(odd_quarters(ab_even, cd_even));
  d = floats_of_bits(odd_quarters(ab_odd, cd_odd));
}

// Rotates 64 values and multiplies them by kRotationGain.
KOE5_INLINE void rotate(Floats& a, Floats& b, Floats& c, Floats& d) {
  combine(a, b, c, d);
  exchange_values(a, b, c, d);
  combine(a, b, c, d);
  exchange_quarters(a, b, c, d);
  combine(a, b, c, d);
}

}  // namespace
}  // namespace koe5
