// Exact (erf) GELU of 16 fp32 values at a time: a table of polynomials, 9 instructions. AVX512 F and DQ only.
#pragma once

#include <immintrin.h>

#include "linear_kernels.h"

namespace koe5 {

#include "gelu_table.inc"

// The table in registers: loaded once before a loop.
struct GeluTable {
  __m512 low[4], high[4];

  static inline GeluTable load() {
    GeluTable table;
    for (int power = 0; power < 4; ++power) {
      table.low[power] = _mm512_load_ps(kGeluTable[power]);
      table.high[power] = _mm512_load_ps(kGeluTable[power] + 16);
    }
    return table;
  }
};

// kGeluShrink * GELU(x), see tools/gelu_table.py: within kGeluShrink * 1.4e-5 of the true value. NaN and infinities
// give NaN.
static inline __m512 gelu(__m512 x, const GeluTable& table) {
  // The smaller magnitude with the sign of x.
  const __m512 inside = _mm512_range_ps(x, _mm512_set1_ps(kGeluEnd), 2);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits, of which a permutation reads five.
  const __m512 shifted = _mm512_fmadd_ps(inside, _mm512_set1_ps(kGeluSteps), _mm512_set1_ps(12582912.0f));
  const __m512i segment = _mm512_castps_si512(shifted);
  __m512 p = _mm512_permutex2var_ps(table.low[3], segment, table.high[3]);
  p = _mm512_fmadd_ps(p, x, _mm512_permutex2var_ps(table.low[2], segment, table.high[2]));
  p = _mm512_fmadd_ps(p, x, _mm512_permutex2var_ps(table.low[1], segment, table.high[1]));
  return _mm512_fmadd_ps(p, x, _mm512_permutex2var_ps(table.low[0], segment, table.high[0]));
}

}  // namespace koe5
