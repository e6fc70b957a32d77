// Exact (erf) GELU of 16 fp32 values at a time: a table of polynomials, 9 instructions of AVX512. Local to the file that
// includes it: see sixteen.h.
#pragma once

#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

#include "gelu_table.inc"

using GeluTable = Tables<4>;

// kGeluShrink * GELU(x), see tools/gelu_table.py: within kGeluShrink * 1.4e-5 of the true value. NaN and infinities
// give NaN.
inline Floats gelu(Floats x, const GeluTable& table) {
  // The smaller magnitude with the sign of x.
  const Floats inside = smaller_magnitude(x, spread(kGeluEnd));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits, of which the table reads five.
  const Floats shifted = multiply_add(inside, spread(kGeluSteps), spread(12582912.0f));
  const Ints segment = bits_of(shifted);
  Floats p = table.of<3>(segment);
  p = multiply_add(p, x, table.of<2>(segment));
  p = multiply_add(p, x, table.of<1>(segment));
  return multiply_add(p, x, table.of<0>(segment));
}

}  // namespace
}  // namespace koe5
