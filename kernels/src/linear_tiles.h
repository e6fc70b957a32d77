// Products of 8-bit integers by register tiles of a few rows x 16 columns, for AVX2, AVX-VNNI and NEON.
//
// While one panel is multiplied, each step of each tile prefetches a part of the next panel into L2.
#pragma once

#include "linear_epilogue.h"
#include "linear_kernels.h"
#include "sixteen.h"

namespace koe5 {
namespace {

constexpr int64_t kColumns = 16;

// Inputs of a tile: rows of activations and 16 columns of weights.
struct Operands {
  const uint8_t* a;
  int64_t a_stride, k;
  const int8_t* b;
  const int32_t* initial;  // initial sum of each column, for each row with a distance of Dot::kInitialStride
  const char* upcoming;  // weights to prefetch
  int64_t advance;       // bytes of `upcoming` per four k
};

using Tile = void (*)(const Operands&, int32_t*);

inline const int8_t* weights_at(const WeightView& w, int64_t column) {
  return panel_at(w, column / kPanelColumns * kPanelColumns) + column % kPanelColumns / kColumns * kBlockBytes;
}

// Dot is the part that depends on the instruction set. It provides:
//   kTileRows, most_rows, scratch_bytes  as in LinearKernels
//   tile(rows)                           the function that computes `rows` rows of a tile
//   activations(p, memory)               p.a in the layout that tiles read, stored in `memory` if it differs
//   row_bytes(k)                         bytes per row in this layout
//   kInitialStride                       0 if all rows have the same initial sums, otherwise 16
//   initial(p, column, sums, memory)     the initial sums of 16 columns: `sums`, or those of each row in `memory`
template <class Dot, class Store>
void multiply_by(const Product& p, const Store& store, void* scratch) {
  int32_t* const sums = static_cast<int32_t*>(scratch);
  void* const memory = sums + Dot::kTileRows * kColumns;
  const uint8_t* const a = Dot::activations(p, memory);
  Finisher<Store> finisher(p, store);
  InitialSums same{};
  const int64_t k = p.w.k, stride = Dot::row_bytes(k);
  const int64_t tiles = ceil_div(p.rows, Dot::kTileRows), advance = ceil_div(kCacheLine, tiles);
  const char* upcoming = nullptr;
  for (int64_t column = p.first; column < p.last; column += kColumns) {
    same.set(p, column, kColumns);
    const int32_t* const initial = Dot::initial(p, column, same.data, memory);
    // The last panel is followed by the first one, with which the next block of rows starts.
    const int64_t next = column + kPanelColumns < p.last ? column + kPanelColumns : p.first;
    if (column % kPanelColumns == 0) upcoming = reinterpret_cast<const char*>(panel_at(p.w, next));
    for (int64_t row = 0; row < p.rows; row += Dot::kTileRows, upcoming += k / 4 * advance) {
      const int64_t rows = p.rows - row < Dot::kTileRows ? p.rows - row : Dot::kTileRows;
      const int32_t* const from = initial + row * Dot::kInitialStride;
      Dot::tile(rows)({a + row * stride, stride, k, weights_at(p.w, column), from, upcoming, advance}, sums);
      finisher.begin({sums, kColumns, kColumns, row, rows, column, kColumns});
      finisher.complete();
    }
  }
}

// A Dot whose rows have the same initial sums.
struct SameInitial {
  static constexpr int64_t kInitialStride = 0;
  static const int32_t* initial(const Product&, int64_t, const int32_t* sums, void*) { return sums; }
};

template <class Dot>
constexpr LinearKernels kernels_by() {
  return {Dot::kTileRows,
          Dot::most_rows,
          kFewestVectorRows,
          Dot::scratch_bytes,
          multiply_by<Dot, StoreBf16>,
          multiply_by<Dot, StoreSums>,
          multiply_by<Dot, StoreGelu>};
}

}  // namespace
}  // namespace koe5
