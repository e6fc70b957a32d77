// Packing of weights. For any x86-64: memory, not arithmetic, takes the time.
#include <emmintrin.h>

#include "linear_kernels.h"

namespace koe5 {
namespace {

// Sixteen columns of four k: four registers of [4 columns][4 k].
struct Line {
  __m128i quarter[4];
};

inline __m128i load(const int8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

inline Line interleaved(const int8_t* row, int64_t stride) {
  const __m128i r0 = load(row), r1 = load(row + stride), r2 = load(row + 2 * stride), r3 = load(row + 3 * stride);
  const __m128i low01 = _mm_unpacklo_epi8(r0, r1), high01 = _mm_unpackhi_epi8(r0, r1);
  const __m128i low23 = _mm_unpacklo_epi8(r2, r3), high23 = _mm_unpackhi_epi8(r2, r3);
  return {{_mm_unpacklo_epi16(low01, low23), _mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(high01, high23),
           _mm_unpackhi_epi16(high01, high23)}};
}

// Of each four bytes the sum: as 16 bits, two by two, then those two.
inline __m128i sums_of_four(__m128i x) {
  const __m128i ones = _mm_set1_epi16(1);
  const __m128i even = _mm_srai_epi16(_mm_slli_epi16(x, 8), 8), odd = _mm_srai_epi16(x, 8);
  return _mm_madd_epi16(_mm_add_epi16(even, odd), ones);
}

}  // namespace

void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums) {
  __m128i total[16] = {};
  for (int64_t at = 0; at < k; at += 4) {
    const int64_t to = at / kStepDepth * 2 * kBlockBytes + at % kStepDepth * 16;
    for (int64_t i = 0; i * 16 < columns; ++i) {
      const Line line = interleaved(weight + at * stride + i * 16, stride);
      for (int64_t j = 0; j < 4; ++j) {
        _mm_store_si128(reinterpret_cast<__m128i*>(blocks[i] + to) + j, line.quarter[j]);
        total[4 * i + j] = _mm_add_epi32(total[4 * i + j], sums_of_four(line.quarter[j]));
      }
    }
  }
  for (int64_t j = 0; j * 4 < columns; ++j) _mm_storeu_si128(reinterpret_cast<__m128i*>(sums) + j, total[j]);
}

}  // namespace koe5
