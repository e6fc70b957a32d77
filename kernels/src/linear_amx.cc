// Products of 8-bit integers by AMX (TDPBUSD). Compiled for AMX-INT8 and AVX512.
//
// Tiles: 0 to 3 sums of 32 rows x 32 columns, 4 and 5 activations, 6 and 7 weights. Activations are first copied into
// tiles of 1 KiB (16 rows x 64 k, zeros beyond rows and k): no configuration for tails, and no rows that are a multiple
// of 4 KiB apart and would compete for the same sets of the L1 cache. A panel of 32 columns stays in the L1 (where it
// fits: 1,024 k are 32 KiB) while the activations of all rows pass it from the L2, by loads that do not displace it;
// meanwhile the next panel is fetched into the L2. While one block is multiplied, the one before it is turned into
// results: that work fits beside the tiles, which are busy elsewhere. Larger k in slices that fit into the L1 are
// no faster: sums that leave the tiles and come back cost as much as panels from the L2.
#include "linear_epilogue.h"
#include "linear_kernels.h"

namespace koe5 {
namespace {

constexpr int64_t kRows = 32, kColumns = kPanelColumns;
constexpr int64_t kTileInts = 256;

// The memory operand of LDTILECFG: Intel's Software Developer's Manual, volume 2.
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

// A block of 16 or 32 rows x 32 columns.
struct Block {
  const uint8_t *top, *bottom;  // activations of the two sixteens
  const int8_t* weight;
  int64_t steps;
  int32_t* sums;         // [2][32][16]: the left and the right columns
  const char* upcoming;  // what to fetch into the L2 meanwhile
  int64_t lines;         // 64-byte lines of it a step
};

template <bool kTwo, class Store>
void multiply_block(const Block& block, Finisher<Store>& before) {
  const Block x = block;
  const int64_t rows_a_step = (kRows + x.steps - 1) / x.steps;
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) _tile_zero(2);
  if (kTwo) _tile_zero(3);
  for (int64_t s = 0; s < x.steps; ++s) {
    _tile_stream_loadd(4, x.top + s * kBlockBytes, 64);
    _tile_loadd(6, x.weight + s * 2 * kBlockBytes, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, x.weight + s * 2 * kBlockBytes + kBlockBytes, 64);
    _tile_dpbusd(1, 4, 7);
    if (kTwo) {
      _tile_stream_loadd(5, x.bottom + s * kBlockBytes, 64);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    before.advance(rows_a_step);
    for (int64_t i = 0; i < x.lines; ++i) _mm_prefetch(x.upcoming + (s * x.lines + i) * 64, _MM_HINT_T1);
  }
  _tile_stored(0, x.sums, 64);
  _tile_stored(1, x.sums + 2 * kTileInts, 64);
  if (kTwo) _tile_stored(2, x.sums + kTileInts, 64);
  if (kTwo) _tile_stored(3, x.sums + 3 * kTileInts, 64);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Store>
class Multiplication {
 public:
  Multiplication(const Product& p, const Store& store, void* scratch)
      : p_(p), steps_(p.w.padded_k / kStepDepth), pairs_(ceil_div(p.rows, kRows)), finisher_(p, store),
        tiles_(static_cast<uint8_t*>(scratch)),
        sums_(reinterpret_cast<int32_t*>(tiles_ + pairs_ * 2 * steps_ * kBlockBytes)) {
    for (int64_t i = 0; i * 16 < p.rows; ++i) copy_rows(p, i * 16, tiles_ + i * steps_ * kBlockBytes);
  }

  void run() {
    for (int64_t column = p_.first; column < p_.last; column += kColumns) {
      for (int64_t pair = 0; pair < pairs_; ++pair) multiply(column, pair);
    }
    finisher_.complete();
  }

 private:
  void multiply(int64_t column, int64_t pair) {
    const int64_t left = p_.rows - pair * kRows, rows = left < kRows ? left : kRows;
    const uint8_t* const top = tiles_ + pair * 2 * steps_ * kBlockBytes;
    const int8_t* const weight = panel_at(p_.w, column);
    const int64_t lines = ceil_div(2 * kBlockBytes / 64, pairs_);
    const char* const upcoming = reinterpret_cast<const char*>(weight) + kColumns * p_.w.padded_k;
    const Block block{top, top + steps_ * kBlockBytes, weight, steps_, sums_, upcoming + pair * steps_ * lines * 64,
                      lines};
    if (rows > 16) {
      multiply_block<true>(block, finisher_);
    } else {
      multiply_block<false>(block, finisher_);
    }
    const int64_t columns = p_.last - column < kColumns ? p_.last - column : kColumns;
    finisher_.begin({sums_, 16, 2 * kTileInts, pair * kRows, rows, column, columns});
  }

  const Product p_;
  const int64_t steps_, pairs_;
  Finisher<Store> finisher_;
  uint8_t* const tiles_;  // [pairs][2][steps][1 KiB]
  int32_t* const sums_;
};

template <class Store>
void multiply(const Product& p, const Store& store, void* scratch) {
  static const TileConfig config;
  Multiplication<Store> multiplication(p, store, scratch);
  // The compiler need not know that tiles are loaded from the memory just written.
  asm volatile("" ::: "memory");
  _tile_loadconfig(&config);
  multiplication.run();
  _tile_release();
}

int64_t scratch_bytes(int64_t rows, int64_t k) {
  const int64_t padded = ceil_div(k, kStepDepth) * kStepDepth;
  return ceil_div(rows, kRows) * kRows * padded + 4 * kTileInts * 4;
}

int64_t most_rows(int64_t k) {
  const int64_t fit = (int64_t{1} << 20) / k / kRows * kRows;
  return fit < 64 ? 64 : fit > 512 ? 512 : fit;
}

}  // namespace

extern const LinearKernels kAmxKernels = {
    16, most_rows, 64, scratch_bytes, multiply<StoreBf16>, multiply<StoreAdd>, multiply<StoreGelu>,
};

}  // namespace koe5
