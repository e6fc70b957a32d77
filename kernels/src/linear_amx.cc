// Products of 8-bit integers by AMX (TDPBUSD). Compiled for AMX-INT8 and AVX512.
//
// Tiles 0 to 3 hold sums of 32 rows x 32 columns, 4 and 5 activations, 6 and 7 weights. Activations are first copied
// in the layout of tiles (1 KiB: 16 rows x 64 inputs k), padded with zeros. Therefore all tiles have the same
// configuration. Copying also avoids reading rows that are a multiple of 4 KiB apart, which would compete for the same
// sets of the L1 cache.
//
// A slice of the weights, 1,024 k x 32 columns, stays in L1 while the activations of all rows are read from L2 with
// loads that do not displace it. Meanwhile, the next panel is prefetched into L2. While one block is multiplied, the
// sums of the previous block are converted to results: up to 64 AVX512 instructions per step of 64 k take no additional
// time, and each further one takes a cycle.
#include "amx_tiles.h"
#include "linear_epilogue.h"
#include "linear_kernels.h"

namespace koe5 {
namespace {

constexpr int64_t kRows = 32, kColumns = kPanelColumns;
constexpr int64_t kTileInts = 256;
// With fewer rows per task, reading the weights takes longer than multiplying.
constexpr int64_t kFewestTileRows = 64;
// Steps of 64 k before switching to the next rows, so that the slice of weights stays in L1. With fewer than
// kSlicedPairs blocks of rows, the weights are not sliced: storing and reloading the sums would cost more than this
// saves.
constexpr int64_t kSliceSteps = 16, kSlicedPairs = 4;

// Copies rows [first, first + 16) of u8[rows, k] to tiles, 1 KiB per step of k.
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

// The product of 16 or 32 rows and 32 columns, over `steps` steps of 64 k.
struct Block {
  const uint8_t *top, *bottom;  // activations of the first and last 16 rows
  const int8_t* weight;
  const int32_t* initial;  // initial sum of each column, or null to continue with `sums`
  int64_t steps;
  int32_t* sums;         // [2][32][16]: left columns, then right columns
  const char* upcoming;  // data to prefetch into L2
  int64_t lines;         // 64-byte lines of `upcoming` per step
};

template <bool kTwo, class Store>
void multiply_block(const Block& block, Finisher<Store>& before) {
  const Block x = block;
  const int64_t rows_a_step = ceil_div(kRows, x.steps);
  if (x.initial != nullptr) {  // a stride of 0 loads the same line for each row
    _tile_loadd(0, x.initial, 0);
    _tile_loadd(1, x.initial + 16, 0);
    if (kTwo) _tile_loadd(2, x.initial, 0);
    if (kTwo) _tile_loadd(3, x.initial + 16, 0);
  } else {
    _tile_loadd(0, x.sums, 64);
    _tile_loadd(1, x.sums + 2 * kTileInts, 64);
    if (kTwo) _tile_loadd(2, x.sums + kTileInts, 64);
    if (kTwo) _tile_loadd(3, x.sums + 3 * kTileInts, 64);
  }
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

template <class Store>
class Multiplication {
 public:
  Multiplication(const Product& p, const Store& store, void* scratch)
      : p_(p), steps_(p.w.padded_k / kStepDepth), pairs_(ceil_div(p.rows, kRows)),
        slice_(pairs_ < kSlicedPairs ? steps_ : kSliceSteps), finisher_(p, store),
        tiles_(static_cast<uint8_t*>(scratch)),
        sums_(reinterpret_cast<int32_t*>(tiles_ + pairs_ * 2 * steps_ * kBlockBytes)) {
    for (int64_t i = 0; i * 16 < p.rows; ++i) copy_rows(p, i * 16, tiles_ + i * steps_ * kBlockBytes);
  }

  void run() {
    for (int64_t column = p_.first; column < p_.last; column += kColumns) {
      initial_.set(p_, column, columns_from(column));
      asm volatile("" ::: "memory");
      for (int64_t step = 0; step < steps_; step += slice_) {
        for (int64_t pair = 0; pair < pairs_; ++pair) multiply(column, pair, step);
      }
    }
    finisher_.complete();
  }

 private:
  int64_t columns_from(int64_t column) const { return p_.last - column < kColumns ? p_.last - column : kColumns; }

  void multiply(int64_t column, int64_t pair, int64_t step) {
    const int64_t left = p_.rows - pair * kRows, rows = left < kRows ? left : kRows;
    const int64_t steps = steps_ - step < slice_ ? steps_ - step : slice_;
    const uint8_t* const top = tiles_ + (pair * 2 * steps_ + step) * kBlockBytes;
    const int8_t* const weight = panel_at(p_.w, column) + step * 2 * kBlockBytes;
    const int64_t lines = ceil_div(2 * kBlockBytes / kCacheLine, pairs_);
    const int8_t* const upcoming = panel_at(p_.w, column + kColumns) + (pair * steps_ + step) * lines * kCacheLine;
    int32_t* const sums = sums_ + (slice_ < steps_ ? pair : 0) * 4 * kTileInts;
    const Block block{top,   top + steps_ * kBlockBytes, weight, step == 0 ? initial_.data : nullptr,
                      steps, sums, reinterpret_cast<const char*>(upcoming), lines};
    if (rows > 16) {
      multiply_block<true>(block, finisher_);
    } else {
      multiply_block<false>(block, finisher_);
    }
    if (step + steps == steps_) finisher_.begin({sums, 16, 2 * kTileInts, pair * kRows, rows, column, columns_from(column)});
  }

  const Product p_;
  const int64_t steps_, pairs_, slice_;
  Finisher<Store> finisher_;
  InitialSums initial_{};
  uint8_t* const tiles_;  // [pairs][2][steps][1 KiB]
  int32_t* const sums_;  // [pairs][4][256]
};

template <class Store>
void multiply(const Product& p, const Store& store, void* scratch) {
  Multiplication<Store> multiplication(p, store, scratch);
  finish_writes();
  configure_tiles();
  multiplication.run();
  _tile_release();
}

int64_t scratch_bytes(int64_t rows, int64_t k) {
  const int64_t padded = round_up(k, kStepDepth);
  return ceil_div(rows, kRows) * (kRows * padded + 4 * kTileInts * 4);
}

// Number of rows of k bytes that fit in half of a 2 MiB L2, but at least kFewestTileRows and at most 512.
int64_t most_rows(int64_t k) {
  const int64_t fit = (int64_t{1} << 20) / k / kRows * kRows;
  return fit < kFewestTileRows ? kFewestTileRows : fit > 512 ? 512 : fit;
}

}  // namespace

extern const LinearKernels kAmxKernels = {
    16, most_rows, kFewestTileRows, scratch_bytes, multiply<StoreBf16>, multiply<StoreSums>, multiply<StoreGelu>,
};

}  // namespace koe5
