// Packing of weights. Compiled for AVX512-VNNI.
#include <immintrin.h>

#include "linear_kernels.h"

namespace koe5 {
namespace {

// Up to 64 columns of one row; zeros beyond.
inline __m512i load_columns(const int8_t* row, __mmask64 columns) { return _mm512_maskz_loadu_epi8(columns, row); }

// Lanes of 128 bits: out[i] = lane i of a, b, c, d.
inline void transpose_lanes(__m512i& a, __m512i& b, __m512i& c, __m512i& d) {
  const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
  a = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  b = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
  c = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  d = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
}

}  // namespace

void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums) {
  const __mmask64 mask = columns >= 64 ? ~__mmask64{0} : (__mmask64{1} << columns) - 1;
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i total[4] = {};
  for (int64_t at = 0; at < k; at += 4) {
    const int8_t* const row = weight + at * stride;
    const __m512i r0 = load_columns(row, mask), r1 = load_columns(row + stride, mask);
    const __m512i r2 = load_columns(row + 2 * stride, mask), r3 = load_columns(row + 3 * stride, mask);
    const __m512i low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
    const __m512i low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
    __m512i line[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                       _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
    transpose_lanes(line[0], line[1], line[2], line[3]);
    const int64_t to = at / kStepDepth * 2 * kBlockBytes + at % kStepDepth * 16;
    for (int64_t i = 0; i * 16 < columns; ++i) {
      _mm512_store_si512(blocks[i] + to, line[i]);
      total[i] = _mm512_dpbusd_epi32(total[i], ones, line[i]);
    }
  }
  for (int64_t i = 0; i * 16 < columns; ++i) _mm512_storeu_si512(sums + i * 16, total[i]);
}

}  // namespace koe5
