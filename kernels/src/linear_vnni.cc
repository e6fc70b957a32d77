// Products of 8-bit integers by VPDPBUSD, and the row functions of the linears. Compiled for AVX512-VNNI.
//
// A register tile is 6 rows x 64 columns: 24 sums, 4 operands of weights and one of activations. A block of rows stays
// in L1 and L2 while one pair of panels after another passes. While one pair is multiplied the next one is fetched into
// L2, a part with each register tile: else the first tile of each pair would wait for memory.
#include "linear_epilogue.h"
#include "linear_kernels.h"
#include "rows.h"

namespace koe5 {
namespace {

constexpr int64_t kTileRows = 6, kTileColumns = 64;

// Rows of activations and four tiles of weights, from the first k on; `lines` of what follows are fetched a step.
struct Operands {
  const uint8_t* a;
  int64_t a_stride;
  const int8_t *b0, *b1, *b2, *b3;
  const int32_t* initial;
  const char* upcoming;
  int64_t lines;
};

#define KOE5_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
// Named sums, not an array: GCC 12 would keep an array in memory inside the loop.
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

// Sums of kRows rows and 64 (kFull) or 32 columns over all k.
template <int kRows, bool kFull>
void tile(const Operands& x, int64_t depth, int32_t* sums) {
  const __m512i i0 = _mm512_load_si512(x.initial), i1 = _mm512_load_si512(x.initial + 16);
  const __m512i i2 = _mm512_load_si512(x.initial + 32), i3 = _mm512_load_si512(x.initial + 48);
  KOE5_EACH_ROW(KOE5_DECLARE)
  const int8_t *b0 = x.b0, *b1 = x.b1, *b2 = x.b2, *b3 = x.b3;
  const char* upcoming = x.upcoming;
  int64_t k = 0;
  while (k < depth) {
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
  const int64_t tiles = (p.rows + kTileRows - 1) / kTileRows, lines = (kTileColumns + tiles - 1) / tiles;
  for (int64_t column = p.first; column < p.last; column += kTileColumns) {
    const int64_t columns = p.last - column < kTileColumns ? p.last - column : kTileColumns;
    const bool full = columns > kPanelColumns;
    initial.set(p, column, columns);
    const int8_t* const left = panel_at(p.w, column);
    const int8_t* const right = full ? left + panel_bytes : left;
    // After the last pair the next block of rows begins at the first one again.
    const int64_t next = column + kTileColumns < p.last ? column + kTileColumns : p.first;
    const char* const upcoming = reinterpret_cast<const char*>(panel_at(p.w, next));
    for (int64_t row = 0; row < p.rows; row += kTileRows) {
      const int64_t rows = p.rows - row < kTileRows ? p.rows - row : kTileRows;
      const char* const part = upcoming + row / kTileRows * lines * steps * 64;
      kTiles[full][rows - 1]({p.a + row * k, k, left, left + kBlockBytes, right, right + kBlockBytes, initial.data, part, lines}, k,
                             sums);
      finisher.begin({sums, kTileColumns, 16, row, rows, column, columns});
      finisher.complete();
    }
  }
}

int64_t most_rows(int64_t) { return 72; }
int64_t scratch_bytes(int64_t, int64_t) { return kTileRows * kTileColumns * 4; }

}  // namespace

extern const LinearKernels kVnniKernels = {
    kTileRows, most_rows, 24, scratch_bytes, multiply<StoreBf16>, multiply<StoreSums>, multiply<StoreGelu>,
};

namespace {

constexpr int64_t kGroup = 8;  // rows that are read together: 512 bytes of each panel

inline __m512i load_panel_row(const uint16_t* values, int64_t columns) {
  return _mm512_maskz_loadu_epi16(columns < kPanelColumns ? 0xffff : ~__mmask32{0}, values);
}

// Largest magnitude of each of the first `rows` rows (at most kGroup); NaN where there is one: as integers, magnitudes
// sort as their values do and NaN above infinity.
inline void largest_values(const StoreGelu& values, int64_t rows, int64_t n, float* largest) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i most[kGroup] = {};
  for (int64_t column = 0; column < n; column += kPanelColumns) {
    const uint16_t* const panel = values.out + column * values.rows;
    for (int64_t row = 0; row < rows; ++row) {
      const __m512i value = load_panel_row(panel + row * kPanelColumns, n - column);
      most[row] = _mm512_max_epu16(most[row], _mm512_and_si512(value, magnitude));
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(most[row]), _mm512_extracti64x4_epi64(most[row], 1));
    const int32_t bits = _mm512_reduce_max_epi32(_mm512_cvtepu16_epi32(half));
    largest[row] = _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(bits))));
  }
}

// Rounded 16-bit steps of 32 values, in the order of rows.h's to_bytes.
inline __m512i gelu_steps(__m512i values, __m512 inverse, __m512i zero) {
  const __m512 left = _mm512_cvtph_ps(_mm512_castsi512_si256(values));
  const __m512 right = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(values, 1));
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(left, inverse));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(right, inverse));
  return _mm512_add_epi16(_mm512_packs_epi32(a, b), zero);
}

void quantize_group(const StoreGelu& values, int64_t rows, int64_t n, int32_t zero, const QuantizedOutput& out) {
  const float floor = 0.17f / static_cast<float>(zero);
  const __m512i shift = _mm512_set1_epi16(static_cast<int16_t>(zero));
  float inverse[kGroup];
  largest_values(values, rows, n, out.scale);
  for (int64_t row = 0; row < rows; ++row) {
    // The largest magnitude serves as the largest value: below 0.17, where it may be that of a negative value, the
    // floor is larger, since zero is at most 127. NaN is the largest of magnitudes.
    const float scale = out.scale[row] / kGeluShrink / static_cast<float>(255 - zero);
    out.scale[row] = scale < floor ? floor : scale;
    inverse[row] = 1.0f / kGeluShrink / out.scale[row];
  }
  for (int64_t column = 0; column < n; column += 2 * kPanelColumns) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint16_t* const at = values.out + column * values.rows + row * kPanelColumns;
      const int64_t left = n - column;
      const __m512 by = _mm512_set1_ps(inverse[row]);
      const __m512i a = gelu_steps(load_panel_row(at, left), by, shift);
      const __m512i b = left <= kPanelColumns
                            ? a
                            : gelu_steps(load_panel_row(at + values.rows * kPanelColumns, left - kPanelColumns), by, shift);
      store_bytes(out.q + row * n + column, to_bytes(a, b), left);
    }
  }
}

// y = x * skip + sums.
void add_row(const float* sums, int64_t panel, const float* x, const float* skip, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 sum = _mm512_loadu_ps(sums + i / kPanelColumns * panel + i % kPanelColumns);
    _mm512_storeu_ps(y + i, _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(skip + i), sum));
  }
}

}  // namespace

void add_norm_quantize_rows(const StoreSums& sums, int64_t rows, int64_t n, const AddNorm& with, float* y,
                            const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; ++row) {
    float* const at = y + row * n;
    add_row(sums.out + row * kPanelColumns, sums.rows * kPanelColumns, with.x + row * n, with.skip, n, at);
    norm_row(at, n, with.gain, with.shift, with.epsilon, at);
    out.scale[row] = quantize_row(at, n, out.q + row * n);
  }
}

void quantize_gelu_rows(const StoreGelu& values, int64_t rows, int64_t n, int32_t zero, const QuantizedOutput& out) {
  for (int64_t row = 0; row < rows; row += kGroup) {
    StoreGelu group = values;
    group.out += row * kPanelColumns;
    quantize_group(group, rows - row < kGroup ? rows - row : kGroup, n, zero, {out.q + row * n, out.scale + row});
  }
}

}  // namespace koe5
