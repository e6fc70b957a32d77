// Exact (erf) GELU of 16 fp32 values at a time: table of polynomials, about 15 instructions. AVX512 F and DQ only.
#pragma once

#include <immintrin.h>

namespace koe5 {

#include "gelu_table.inc"

// The table in registers: loaded once before a loop.
struct GeluTable {
  __m512 low[5], high[5];

  static inline GeluTable load() {
    GeluTable table;
    for (int power = 0; power < 5; ++power) {
      table.low[power] = _mm512_load_ps(kGeluTable[power]);
      table.high[power] = _mm512_load_ps(kGeluTable[power] + 16);
    }
    return table;
  }
};

// max(x, 0) - h(|x|), see tools/gelu_table.py: within 3e-8 plus half a unit in the last place of the true value.
// NaN and -infinity give NaN (as x * Phi(x) does), infinity stays.
static inline __m512 gelu(__m512 x, const GeluTable& table) {
  const __m512 magnitude = _mm512_abs_ps(x);
  // The minimum's second operand is the result where one is NaN.
  const __m512 steps = _mm512_min_ps(_mm512_set1_ps(31.0f), _mm512_mul_ps(magnitude, _mm512_set1_ps(kGeluSteps)));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits, of which a permutation reads five.
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 shifted = _mm512_add_ps(steps, magic);
  const __m512i segment = _mm512_castps_si512(shifted);
  const __m512 t = _mm512_sub_ps(steps, _mm512_sub_ps(shifted, magic));
  __m512 h = _mm512_permutex2var_ps(table.low[4], segment, table.high[4]);
  h = _mm512_fmadd_ps(h, t, _mm512_permutex2var_ps(table.low[3], segment, table.high[3]));
  h = _mm512_fmadd_ps(h, t, _mm512_permutex2var_ps(table.low[2], segment, table.high[2]));
  h = _mm512_fmadd_ps(h, t, _mm512_permutex2var_ps(table.low[1], segment, table.high[1]));
  h = _mm512_fmadd_ps(h, t, _mm512_permutex2var_ps(table.low[0], segment, table.high[0]));
  return _mm512_fmsub_ps(_mm512_add_ps(x, magnitude), _mm512_set1_ps(0.5f), h);
}

}  // namespace koe5
