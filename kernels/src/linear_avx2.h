// Products of 8-bit integers by 256-bit registers, for linear_avx2.cc and linear_avx_vnni.cc. A register tile has two
// registers of sums per row.
#pragma once

#include "linear_tiles.h"

namespace koe5 {
namespace {

#define KOE5_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
// Named variables instead of an array, because GCC 12 would keep an array in memory inside the loop.
#define KOE5_DECLARE(r)                                                           \
  Ints sum##r = load_ints(x.initial + (r < kRows ? r : 0) * Dot::kInitialStride); \
  const uint8_t* const a##r = x.a + (r < kRows ? r : 0) * x.a_stride;
#define KOE5_MULTIPLY(r) \
  if constexpr (r < kRows) Dot::add(sum##r, a##r + at, weights);
#define KOE5_STORE(r) \
  if constexpr (r < kRows) store(sums + r * kColumns, sum##r);

// Computes the sums of kRows rows and 16 columns over all k.
template <class Dot, int kRows>
void tile(const Operands& x, int32_t* sums) {
  KOE5_EACH_ROW(KOE5_DECLARE)
  const int8_t* step = x.b;
  const char* upcoming = x.upcoming;
  int64_t at = 0;
  for (int64_t k = 0; k < x.k; k += kStepDepth, step += 2 * kBlockBytes) {
    const int64_t end = x.k - k < kStepDepth ? x.k : k + kStepDepth;
    for (const int8_t* b = step; at < end; at += 4, b += 64, upcoming += x.advance) {
      _mm_prefetch(upcoming, _MM_HINT_T1);
      const Ints weights = load_ints(b);
      KOE5_EACH_ROW(KOE5_MULTIPLY)
    }
  }
  KOE5_EACH_ROW(KOE5_STORE)
}

#undef KOE5_EACH_ROW
#undef KOE5_DECLARE
#undef KOE5_MULTIPLY
#undef KOE5_STORE

// Dot provides add(sums of 16 columns, four k of a row, four k of 16 columns).
template <class Dot>
constexpr Tile kTiles[] = {tile<Dot, 1>, tile<Dot, 2>, tile<Dot, 3>, tile<Dot, 4>, tile<Dot, 5>, tile<Dot, 6>};

// Broadcasts four bytes to all 32-bit lanes.
KOE5_INLINE __m256i each(const void* from) {
  int32_t four;
  __builtin_memcpy(&four, from, 4);
  return _mm256_set1_epi32(four);
}

}  // namespace
}  // namespace koe5
