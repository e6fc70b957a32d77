// Products of 8-bit integers by NEON, for linear_neon_dotprod.cc and linear_neon_i8mm.cc.
//
// A unit (neon_tile.h) holds eight consecutive inputs k of two rows for SMMLA. For SDOT, it holds eight k of one row
// twice. It is multiplied by eight k of two columns. The zero point is subtracted from activations when they are
// copied, so sums start at zero.
#pragma once

#include "linear_tiles.h"
#include "neon_tile.h"

namespace koe5 {
namespace {

constexpr int64_t kUnitBytes = 16, kUnitDepth = 8;

// Computes the sums of kUsed units and 16 columns over all k.
template <class Dot, int kUsed>
void tile(const Operands& x, int32_t* sums) {
  constexpr int64_t kStored = Dot::kUnitRows * kColumns;
  UnitSums<Ints> s0{int_zeros(), int_zeros()}, s1 = s0, s2 = s0;
  const int64_t unit = x.a_stride * Dot::kUnitRows, steps = ceil_div(x.k, kUnitDepth);
  const int8_t* a = reinterpret_cast<const int8_t*>(x.a);
  const int8_t* step = x.b;
  const char* upcoming = x.upcoming;
  for (int64_t at = 0; at < steps; step += 2 * kBlockBytes) {
    const int64_t end = steps - at < kStepDepth / kUnitDepth ? steps : at + kStepDepth / kUnitDepth;
    for (const int8_t* b = step; at < end; ++at, a += kUnitBytes, b += 8 * kUnitBytes, upcoming += 2 * x.advance) {
      __builtin_prefetch(upcoming, 0, 2);
      const int8x16_t units[kUnits] = {vld1q_s8(a), vld1q_s8(kUsed > 1 ? a + unit : a),
                                       vld1q_s8(kUsed > 2 ? a + 2 * unit : a)};
      multiply_columns<Dot, kUsed>(units, b, s0, s1, s2);
    }
  }
  Dot::store_rows(s0, sums);
  if constexpr (kUsed > 1) Dot::store_rows(s1, sums + kStored);
  if constexpr (kUsed > 2) Dot::store_rows(s2, sums + 2 * kStored);
}

template <class Dot>
constexpr Tile kTiles[kUnits] = {tile<Dot, 1>, tile<Dot, 2>, tile<Dot, 3>};

// Reads eight k of a row, or the last four followed by zeros, and subtracts the zero point.
inline uint64_t eight_of(const uint8_t* row, int64_t k, int64_t at) {
  constexpr uint64_t kZeros = uint64_t{0x0101010101010101} * kZeroPoint;
  uint64_t eight = kZeros;
  if (k - at < kUnitDepth) {
    __builtin_memcpy(&eight, row + at, 4);
  } else {
    __builtin_memcpy(&eight, row + at, 8);
  }
  return eight ^ kZeros;
}

// Derived provides multiply(sums, unit, two columns) and store_rows(sums of a unit, to).
template <class Derived, int kRowsOfUnit>
struct NeonDot : SameInitial {
  static constexpr int64_t kUnitRows = kRowsOfUnit, kTileRows = kUnits * kUnitRows;

  static KOE5_INLINE int8x16_t load(const int8_t* from) { return vld1q_s8(from); }
  static Tile tile(int64_t rows) { return kTiles<Derived>[(rows - 1) / kUnitRows]; }
  static int64_t row_bytes(int64_t k) { return round_up(k, kUnitDepth) * (kUnitBytes / kUnitDepth) / kUnitRows; }

  // Copies the activations to [units][k / 8, rounded up][16]. A unit with only one row has it twice.
  static const uint8_t* activations(const Product& p, void* memory) {
    uint64_t* out = static_cast<uint64_t*>(memory);
    for (int64_t row = 0; row < p.rows; row += kUnitRows) {
      const uint8_t *const first = p.a + row * p.w.k, *const second = row + kUnitRows > p.rows
                                                                          ? first
                                                                          : first + (kUnitRows - 1) * p.w.k;
      for (int64_t at = 0; at < p.w.k; at += kUnitDepth) {
        *out++ = eight_of(first, p.w.k, at);
        *out++ = eight_of(second, p.w.k, at);
      }
    }
    return static_cast<const uint8_t*>(memory);
  }

  static int64_t scratch_bytes(int64_t rows, int64_t k) {
    return kTileRows * kColumns * 4 + round_up(rows, kUnitRows) * row_bytes(k);
  }
};

}  // namespace
}  // namespace koe5
