// Exact (erf) GELU of 16 fp32 values at a time: table of polynomials, about 15 instructions of AVX512. Local to
// the file that includes it: see sixteen.h.
#pragma once

#include "sixteen.h"

namespace koe5 {
namespace {

#include "gelu_table.inc"

using GeluTable = Tables<5>;

// max(x, 0) - h(|x|), see tools/gelu_table.py: within 3e-8 plus half a unit in the last place of the true value.
// NaN and -infinity give NaN (as x * Phi(x) does), infinity stays.
inline Floats gelu(Floats x, const GeluTable& table) {
  const Floats distance = magnitude(x);
  // The minimum's second operand is the result where one is NaN.
  const Floats steps = smaller_of(spread(31.0f), multiply(distance, spread(kGeluSteps)));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits, of which the table reads five.
  const Floats magic = spread(12582912.0f);
  const Floats shifted = add(steps, magic);
  const Ints segment = bits_of(shifted);
  const Floats t = subtract(steps, subtract(shifted, magic));
  Floats h = table.of<4>(segment);
  h = multiply_add(h, t, table.of<3>(segment));
  h = multiply_add(h, t, table.of<2>(segment));
  h = multiply_add(h, t, table.of<1>(segment));
  h = multiply_add(h, t, table.of<0>(segment));
  return multiply_subtract(add(x, distance), spread(0.5f), h);
}

}  // namespace
}  // namespace koe5
