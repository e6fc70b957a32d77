// Products of 8-bit integers by AVX2, with VPDPBUSD or without. Included by the units of both, which have the tiles.
//
// A register tile is some rows x 16 columns, which are two registers. While a panel is multiplied, the next one is
// fetched into L2, a part with each step of each tile.
#pragma once

#include "linear_epilogue.h"
#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

constexpr int64_t kColumns = 16;

// What a tile reads, rows of activations and 16 columns of weights, and what to fetch, `advance` bytes for each four k.
struct Operands {
  const uint8_t* a;
  int64_t a_stride, k;
  const int8_t* b;
  const int32_t* initial;  // what the sums of each column begin with
  const char* upcoming;
  int64_t advance;
};

#define KOE5_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
// Named sums, not an array: GCC 12 would keep an array in memory inside the loop.
#define KOE5_DECLARE(r)      \
  Ints sum##r = initial;     \
  const uint8_t* const a##r = x.a + (r < kRows ? r : 0) * x.a_stride;
#define KOE5_MULTIPLY(r) \
  if constexpr (r < kRows) Dot::add(sum##r, a##r + at, weights);
#define KOE5_STORE(r) \
  if constexpr (r < kRows) store(sums + r * kColumns, sum##r);

// Sums of kRows rows and 16 columns over all k.
template <class Dot, int kRows>
void tile(const Operands& x, int32_t* sums) {
  const Ints initial = load_ints(x.initial);
  KOE5_EACH_ROW(KOE5_DECLARE)
  const int8_t* step = x.b;
  const char* upcoming = x.upcoming;
  int64_t at = 0;
  for (int64_t k = 0; k < x.k; k += kStepDepth, step += 2 * kBlockBytes) {
    const int64_t end = (x.k - k < kStepDepth ? x.k : k + kStepDepth) * Dot::kBytes;
    for (const int8_t* b = step; at < end; at += 4 * Dot::kBytes, b += 64, upcoming += x.advance) {
      _mm_prefetch(upcoming, _MM_HINT_T1);
      const typename Dot::Weights weights(load_ints(b));
      KOE5_EACH_ROW(KOE5_MULTIPLY)
    }
  }
  KOE5_EACH_ROW(KOE5_STORE)
}

#undef KOE5_EACH_ROW
#undef KOE5_DECLARE
#undef KOE5_MULTIPLY
#undef KOE5_STORE

using Tile = void (*)(const Operands&, int32_t*);

template <class Dot>
constexpr Tile kTiles[] = {tile<Dot, 1>, tile<Dot, 2>, tile<Dot, 3>, tile<Dot, 4>, tile<Dot, 5>, tile<Dot, 6>};

// Four bytes for each column.
KOE5_INLINE __m256i each(const uint8_t* from) {
  int32_t four;
  __builtin_memcpy(&four, from, 4);
  return _mm256_set1_epi32(four);
}

inline const int8_t* weights_at(const WeightView& w, int64_t column) {
  return panel_at(w, column / kPanelColumns * kPanelColumns) + column % kPanelColumns / kColumns * kBlockBytes;
}

// Dot has: kTileRows, at most 6; kBytes, of an activation; activations(p, memory), which lays these out; Weights, made
// of 16 columns of four k; add(sum, four k of activations, weights); most_rows and scratch_bytes as LinearKernels.
template <class Dot, class Store>
void multiply_by(const Product& p, const Store& store, void* scratch) {
  int32_t* const sums = static_cast<int32_t*>(scratch);
  const uint8_t* const a = Dot::activations(p, sums + Dot::kTileRows * kColumns);
  Finisher<Store> finisher(p, store);
  InitialSums initial{};
  const int64_t k = p.w.k, stride = k * Dot::kBytes;
  const int64_t tiles = (p.rows + Dot::kTileRows - 1) / Dot::kTileRows, advance = (64 + tiles - 1) / tiles;
  const char* upcoming = nullptr;
  for (int64_t column = p.first; column < p.last; column += kColumns) {
    initial.set(p, column, kColumns);
    // After the last panel the next block of rows begins at the first one again.
    const int64_t next = column + kPanelColumns < p.last ? column + kPanelColumns : p.first;
    if (column % kPanelColumns == 0) upcoming = reinterpret_cast<const char*>(panel_at(p.w, next));
    for (int64_t row = 0; row < p.rows; row += Dot::kTileRows, upcoming += k / 4 * advance) {
      const int64_t rows = p.rows - row < Dot::kTileRows ? p.rows - row : Dot::kTileRows;
      kTiles<Dot>[rows - 1]({a + row * stride, stride, k, weights_at(p.w, column), initial.data, upcoming, advance}, sums);
      finisher.begin({sums, kColumns, kColumns, row, rows, column, kColumns});
      finisher.complete();
    }
  }
}

template <class Dot>
constexpr LinearKernels kernels_by() {
  return {Dot::kTileRows,
          Dot::most_rows,
          24,
          Dot::scratch_bytes,
          multiply_by<Dot, StoreBf16>,
          multiply_by<Dot, StoreSums>,
          multiply_by<Dot, StoreGelu>};
}

}  // namespace
}  // namespace koe5
