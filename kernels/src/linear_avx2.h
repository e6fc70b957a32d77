// Products of 8-bit integers by AVX2, with VPDPBUSD or without. Included by the units of both.
//
// A register tile is some rows x 16 columns, which are two registers. While 16 columns are multiplied, the next ones
// are fetched into L2, a part with each register tile.
#pragma once

#include "linear_epilogue.h"
#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

constexpr int64_t kColumns = 16;

// Rows of activations and a tile of weights, from the first k on; `lines` of what follows are fetched a step.
struct Operands {
  const uint8_t* a;
  int64_t a_stride;
  const int8_t* b;
  const char* upcoming;
  int64_t lines;
};

#define KOE5_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
// Named sums, not an array: GCC 12 would keep an array in memory inside the loop.
#define KOE5_DECLARE(r)       \
  Ints sum##r = int_zeros();  \
  const uint8_t* const a##r = x.a + (r < kRows ? r : 0) * x.a_stride;
#define KOE5_MULTIPLY(r) \
  if constexpr (r < kRows) Dot::add(sum##r, a##r + k / 4 * Dot::kBytes, weights);
#define KOE5_STORE(r) \
  if constexpr (r < kRows) store(sums + r * kColumns, sum##r);

// Sums of kRows rows and 16 columns over all k.
template <class Dot, int kRows>
void tile(const Operands& x, int64_t depth, int32_t* sums) {
  KOE5_EACH_ROW(KOE5_DECLARE)
  const int8_t* b = x.b;
  const char* upcoming = x.upcoming;
  int64_t k = 0;
  while (k < depth) {
    for (int64_t i = 0; i < x.lines; ++i) _mm_prefetch(upcoming + i * 64, _MM_HINT_T1);
    const int64_t end = depth - k < kStepDepth ? depth : k + kStepDepth;
    for (const int8_t* at = b; k < end; k += 4, at += 64) {
      const typename Dot::Weights weights(load_ints(at));
      KOE5_EACH_ROW(KOE5_MULTIPLY)
    }
    b += 2 * kBlockBytes, upcoming += 2 * kBlockBytes;
  }
  KOE5_EACH_ROW(KOE5_STORE)
}

#undef KOE5_EACH_ROW
#undef KOE5_DECLARE
#undef KOE5_MULTIPLY
#undef KOE5_STORE

using Tile = void (*)(const Operands&, int64_t, int32_t*);

template <class Dot>
Tile tile_of(int64_t rows) {
  static_assert(Dot::kTileRows <= 6, "rows of a tile have names");
  constexpr Tile kTiles[] = {tile<Dot, 1>, tile<Dot, 2>, tile<Dot, 3>, tile<Dot, 4>, tile<Dot, 5>, tile<Dot, 6>};
  return kTiles[rows - 1];
}

inline const int8_t* weights_at(const WeightView& w, int64_t column) {
  return panel_at(w, column / kPanelColumns * kPanelColumns) + column / kColumns % 2 * kBlockBytes;
}

template <class Dot, class Store>
void multiply_by(const Product& p, const Store& store, void* scratch) {
  int32_t* const sums = static_cast<int32_t*>(scratch);
  const uint8_t* const a = Dot::activations(p, sums + Dot::kTileRows * kColumns);
  Finisher<Store> finisher(p, store);
  const int64_t k = p.w.k, stride = k / 4 * Dot::kBytes;
  const int64_t tiles = (p.rows + Dot::kTileRows - 1) / Dot::kTileRows;
  const int64_t lines = (kBlockBytes / 64 + tiles - 1) / tiles;
  for (int64_t column = p.first; column < p.last; column += kColumns) {
    // After the last columns the next block of rows begins at the first ones again.
    const int64_t next = column + kColumns < p.last ? column + kColumns : p.first;
    const char* const upcoming = reinterpret_cast<const char*>(weights_at(p.w, next));
    for (int64_t row = 0; row < p.rows; row += Dot::kTileRows) {
      const int64_t rows = p.rows - row < Dot::kTileRows ? p.rows - row : Dot::kTileRows;
      const char* const part = upcoming + row / Dot::kTileRows * lines * 64;
      tile_of<Dot>(rows)({a + row * stride, stride, weights_at(p.w, column), part, lines}, k, sums);
      finisher.begin({sums, kColumns, kColumns, row, rows, column, kColumns});
      finisher.complete();
    }
  }
}

template <class Dot>
int64_t scratch_bytes(int64_t rows, int64_t k) {
  return Dot::kTileRows * kColumns * 4 + Dot::activation_bytes(rows, k);
}

}  // namespace
}  // namespace koe5
