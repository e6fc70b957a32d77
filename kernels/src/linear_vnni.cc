// Products of 8-bit integers by VPDPBUSD. Compiled for AVX512-VNNI.
//
// A register tile is 6 rows x 64 columns: 24 registers of sums, 4 of weights and 1 of activations. A block of rows
// stays in L1 and L2 while pairs of panels are read one after another. While one pair is multiplied, each register tile
// prefetches a part of the next pair into L2. Otherwise, the first tile of each pair would wait for memory.
#include "linear_epilogue.h"
#include "linear_kernels.h"

namespace koe5 {
namespace {

constexpr int64_t kTileRows = 6, kTileColumns = 64;

// Inputs of a tile: rows of activations, and weights of 16 columns each at b0 to b3. Each step of 64 k prefetches
// `lines` cache lines from `upcoming`.
struct Operands {
  const uint8_t* a;
  int64_t a_stride;
  const int8_t *b0, *b1, *b2, *b3;
  const int32_t* initial;
  const char* upcoming;
  int64_t lines;
};

#define KOE5_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
// Named variables instead of an array, because GCC 12 would keep an array in memory inside the loop.
#define KOE5_DECLARE(r)                                                                                       \
  __m512i s##r##0 = i0, s##r##1 = i1, s##r##2 = i2, s##r##3 = i3;          \
  const uint8_t* const a##r = x.a + (r < kRows ? r : 0) * x.a_stride;
#define KOE5_MULTIPLY(r)                                                                                      \
  if constexpr (r < kRows) {                                                                                  \
    int32_t four;                                                                                             \
    __builtin_memcpy(&four, a##r + k, 4);                                                                     \
    const __m512i a = _mm512_set1_epi32(four);                                                                \
    s##r##0 = _mm512_dpbusd_epi32(s##r##0, a, w0);                                                            \
    s##r##1 = _mm512_dpbusd_epi32(s##r##1, a, w1);                                                            \
    if constexpr (kFull) s##r##2 = _mm512_dpbusd_epi32(s##r##2, a, w2);                                       \
    if constexpr (kFull) s##r##3 = _mm512_dpbusd_epi32(s##r##3, a, w3);                                       \
  }
#define KOE5_STORE(r)                                                                                         \
  if constexpr (r < kRows) {                                                                                  \
    _mm512_store_si512(sums + r * kTileColumns, s##r##0);                                                     \
    _mm512_store_si512(sums + r * kTileColumns + 16, s##r##1);                                                \
    if constexpr (kFull) _mm512_store_si512(sums + r * kTileColumns + 32, s##r##2);                           \
    if constexpr (kFull) _mm512_store_si512(sums + r * kTileColumns + 48, s##r##3);                           \
  }

// Computes the sums of kRows rows and 64 (kFull) or 32 columns over all k.
template <int kRows, bool kFull>
void tile(const Operands& x, int64_t depth, int32_t* sums) {
  const __m512i i0 = _mm512_load_si512(x.initial), i1 = _mm512_load_si512(x.initial + 16);
  const __m512i i2 = _mm512_load_si512(x.initial + 32), i3 = _mm512_load_si512(x.initial + 48);
  KOE5_EACH_ROW(KOE5_DECLARE)
  const int8_t *b0 = x.b0, *b1 = x.b1, *b2 = x.b2, *b3 = x.b3;
  const char* upcoming = x.upcoming;
  int64_t k = 0;
  while (k < depth) {
#if defined(__clang__)
#pragma clang loop unroll(disable)  // unrolled prefetches delay the loads of a tile with few rows
#endif
    for (int64_t i = 0; i < x.lines; ++i, upcoming += 64) _mm_prefetch(upcoming, _MM_HINT_T1);
    const int64_t end = depth - k < kStepDepth ? depth : k + kStepDepth;
    for (int64_t at = 0; k < end; k += 4, at += 64) {
      const __m512i w0 = _mm512_load_si512(b0 + at), w1 = _mm512_load_si512(b1 + at);
      const __m512i w2 = kFull ? _mm512_load_si512(b2 + at) : w0, w3 = kFull ? _mm512_load_si512(b3 + at) : w1;
      KOE5_EACH_ROW(KOE5_MULTIPLY)
    }
    b0 += 2 * kBlockBytes, b1 += 2 * kBlockBytes, b2 += 2 * kBlockBytes, b3 += 2 * kBlockBytes;
  }
  KOE5_EACH_ROW(KOE5_STORE)
}

#undef KOE5_EACH_ROW
#undef KOE5_DECLARE
#undef KOE5_MULTIPLY
#undef KOE5_STORE

using Tile = void (*)(const Operands&, int64_t, int32_t*);
constexpr Tile kTiles[2][kTileRows] = {
    {tile<1, false>, tile<2, false>, tile<3, false>, tile<4, false>, tile<5, false>, tile<6, false>},
    {tile<1, true>, tile<2, true>, tile<3, true>, tile<4, true>, tile<5, true>, tile<6, true>},
};

template <class Store>
void multiply(const Product& p, const Store& store, void* scratch) {
  int32_t* const sums = static_cast<int32_t*>(scratch);
  Finisher<Store> finisher(p, store);
  InitialSums initial{};
  const int64_t k = p.w.k, panel_bytes = kPanelColumns * p.w.padded_k, steps = p.w.padded_k / kStepDepth;
  const int64_t tiles = ceil_div(p.rows, kTileRows), lines = ceil_div(kTileColumns, tiles);
  for (int64_t column = p.first; column < p.last; column += kTileColumns) {
    const int64_t columns = p.last - column < kTileColumns ? p.last - column : kTileColumns;
    const bool full = columns > kPanelColumns;
    initial.set(p, column, columns);
    const int8_t* const left = panel_at(p.w, column);
    const int8_t* const right = full ? left + panel_bytes : left;
    // The last pair is followed by the first one, with which the next block of rows starts.
    const int64_t next = column + kTileColumns < p.last ? column + kTileColumns : p.first;
    const char* const upcoming = reinterpret_cast<const char*>(panel_at(p.w, next));
    for (int64_t row = 0; row < p.rows; row += kTileRows) {
      const int64_t rows = p.rows - row < kTileRows ? p.rows - row : kTileRows;
      const char* const part = upcoming + row / kTileRows * lines * steps * kCacheLine;
      kTiles[full][rows - 1]({p.a + row * k, k, left, left + kBlockBytes, right, right + kBlockBytes, initial.data, part, lines}, k,
                             sums);
      finisher.begin({sums, kTileColumns, 16, row, rows, column, columns});
      finisher.complete();
    }
  }
}

int64_t most_rows(int64_t) { return kVectorRows; }
int64_t scratch_bytes(int64_t, int64_t) { return kTileRows * kTileColumns * 4; }

}  // namespace

extern const LinearKernels kVnniKernels = {
    kTileRows, most_rows, kFewestVectorRows, scratch_bytes, multiply<StoreBf16>, multiply<StoreSums>, multiply<StoreGelu>,
};

}  // namespace koe5
