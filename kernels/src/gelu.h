// GELU (the erf form, not the tanh approximation) of 16 fp32 values at a time by a table of polynomials, in 9 AVX512
// instructions. Local to the file that includes it; see sixteen.h.
#pragma once

#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

#include "gelu_table.inc"

using GeluTable = Tables<4, kGeluTable>;

// Returns kGeluShrink * GELU(x) with an absolute error of at most kGeluShrink * 1.4e-5, or NaN for NaN and infinities.
// See tools/gelu_table.py.
inline Floats gelu(Floats x, const GeluTable& table) {
  // Clamps x to [-kGeluEnd, kGeluEnd].
  const Floats inside = smaller_magnitude(x, spread(kGeluEnd));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits of the float. The table uses the lowest
  // five.
  const Floats shifted = multiply_add(inside, spread(kGeluSteps), spread(12582912.0f));
  const Ints segment = bits_of(shifted);
  Floats p = table.of<3>(segment);
  p = multiply_add(p, x, table.of<2>(segment));
  p = multiply_add(p, x, table.of<1>(segment));
  return multiply_add(p, x, table.of<0>(segment));
}

}  // namespace
}  // namespace koe5
