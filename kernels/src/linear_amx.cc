// Products of 8-bit integers by AMX (TDPBUSD). Compiled for AMX-INT8 and AVX512.
//
// Tiles: 0 to 3 sums of 32 rows x 32 columns, 4 and 5 activations, 6 and 7 weights. Activations are first copied into
// tiles of 1 KiB (16 rows x 64 k, zeros beyond rows and k): no configuration for tails, and no rows that are a multiple
// of 4 KiB apart and would compete for the same sets of the L1 cache. Then 64 columns of weights at a time: for each
// 512 k of them (32 KiB) all rows pass, their sums waiting in the L2 between one 512 and the next, while the next
// columns are fetched into the L2.
#include "linear_epilogue.h"
#include "linear_kernels.h"

namespace koe5 {
namespace {

constexpr int64_t kRows = 32, kColumns = 32;
constexpr int64_t kSteps = 8;  // k steps of 64 that the weights in L1 cover
constexpr int64_t kSumsBytes = kRows * kColumns * 4;

// https://www.intel.com/content/www/us/en/docs/intrinsics-guide, _tile_loadconfig
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Copies rows [first, first + 16) of u8[rows, k] to tiles, 1 KiB a step of k.
void copy_rows(const Product& p, int64_t first, uint8_t* to) {
  const int64_t k = p.w.k, steps = p.w.padded_k / kStepDepth;
  for (int64_t r = 0; r < 16; ++r) {
    const bool inside = first + r < p.rows;
    const uint8_t* const row = p.a + (inside ? first + r : 0) * k;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t left = inside ? k - s * kStepDepth : 0;
      const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      _mm512_store_si512(to + s * kBlockBytes + r * 64, _mm512_maskz_loadu_epi8(mask, row + s * kStepDepth));
    }
  }
}

// One block of 16 or 32 rows x 32 columns.
struct Block {
  const uint8_t *top, *bottom;  // activation tiles of the two sixteens
  const int8_t* weight;
  int32_t* sums;        // [32][32]
  const char* upcoming;  // what to fetch into the L2 meanwhile
  int64_t lines;         // 64-byte lines of it a step
};

template <bool kTwo>
void multiply_block(const Block& x, int64_t steps, bool begin) {
  if (begin) {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo) _tile_zero(3);
  } else {
    _tile_loadd(0, x.sums, kColumns * 4);
    _tile_loadd(1, x.sums + 16, kColumns * 4);
    if (kTwo) _tile_loadd(2, x.sums + 16 * kColumns, kColumns * 4);
    if (kTwo) _tile_loadd(3, x.sums + 16 * kColumns + 16, kColumns * 4);
  }
  const char* upcoming = x.upcoming;
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, x.top + s * kBlockBytes, 64);
    _tile_loadd(6, x.weight + s * 2 * kBlockBytes, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, x.weight + s * 2 * kBlockBytes + kBlockBytes, 64);
    _tile_dpbusd(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, x.bottom + s * kBlockBytes, 64);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    for (int64_t i = 0; i < x.lines; ++i) _mm_prefetch(upcoming + i * 64, _MM_HINT_T1);
    upcoming += x.lines * 64;
  }
  _tile_stored(0, x.sums, kColumns * 4);
  _tile_stored(1, x.sums + 16, kColumns * 4);
  if (kTwo) _tile_stored(2, x.sums + 16 * kColumns, kColumns * 4);
  if (kTwo) _tile_stored(3, x.sums + 16 * kColumns + 16, kColumns * 4);
}

int64_t pairs_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

// 64 columns (or what is left of them) of all rows.
struct Group {
  int64_t column, panels;  // 1 or 2
  const uint8_t* tiles;
  int32_t* sums;  // [pairs][2][32][32]
};

template <class Store>
void multiply_steps(const Product& p, const Group& g, int64_t from, const Store& store) {
  const int64_t all = p.w.padded_k / kStepDepth, pairs = pairs_of(p.rows);
  const int64_t steps = all - from < kSteps ? all - from : kSteps;
  const int64_t panel_bytes = kPanelColumns * p.w.padded_k;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const uint8_t* const top = g.tiles + (pair * 2 * all + from) * kBlockBytes;
    const int64_t left = p.rows - pair * kRows, rows = left < kRows ? left : kRows;
    for (int64_t i = 0; i < g.panels; ++i) {
      const int8_t* const weight = panel_at(p.w, g.column) + i * panel_bytes + from * 2 * kBlockBytes;
      int32_t* const sums = g.sums + (pair * 2 + i) * kRows * kColumns;
      const int64_t lines = (32 + pairs - 1) / pairs;
      const Block block{top,  top + all * kBlockBytes, weight, sums,
                        reinterpret_cast<const char*>(weight) + 2 * panel_bytes + pair * steps * lines * 64, lines};
      (rows > 16 ? multiply_block<true> : multiply_block<false>)(block, steps, from == 0);
      const int64_t column = g.column + i * kColumns;
      const int64_t columns = p.last - column < kColumns ? p.last - column : kColumns;
      if (from + steps == all) finish(p, {sums, kColumns, pair * kRows, rows, column, columns}, store);
    }
  }
}

int64_t scratch_bytes(int64_t rows, int64_t k) {
  const int64_t padded = (k + kStepDepth - 1) / kStepDepth * kStepDepth;
  return pairs_of(rows) * (kRows * padded + 2 * kSumsBytes);
}

template <class Store>
void multiply(const Product& p, const Store& store, void* scratch) {
  const int64_t all = p.w.padded_k / kStepDepth, pairs = pairs_of(p.rows);
  uint8_t* const tiles = static_cast<uint8_t*>(scratch);
  int32_t* const sums = reinterpret_cast<int32_t*>(tiles + pairs * 2 * all * kBlockBytes);
  for (int64_t i = 0; i * 16 < p.rows; ++i) copy_rows(p, i * 16, tiles + i * all * kBlockBytes);
  // The compiler need not know that tiles are loaded from the memory just written.
  asm volatile("" ::: "memory");
  static const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t column = p.first; column < p.last; column += 2 * kColumns) {
    const Group group{column, p.last - column > kColumns ? 2 : 1, tiles, sums};
    for (int64_t from = 0; from < all; from += kSteps) multiply_steps(p, group, from, store);
  }
  _tile_release();
}

int64_t most_rows(int64_t k) {
  const int64_t fit = (int64_t{1} << 20) / k / kRows * kRows;
  return fit < 64 ? 64 : fit > 512 ? 512 : fit;
}

}  // namespace

extern const LinearKernels kAmxKernels = {
    most_rows, 64, scratch_bytes, multiply<StoreBf16>, multiply<StoreAdd>, multiply<StoreGelu>,
};

}  // namespace koe5
