// Packs weights. Compiled for AVX2, which every supported x86-64 CPU has.
#include <immintrin.h>

#include "linear_kernels.h"

namespace koe5 {
namespace {

// Loads 32 columns of one row, or 16 columns followed by zeros.
inline __m256i load_columns(const int8_t* row, bool both) {
  if (both) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
}

// Stores four k of 8 columns and adds their sums to `total`.
inline void store_line(__m256i line, int8_t* to, __m256i& total) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), line);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), line);
  total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Packs four k of 32 columns into two blocks, or of 16 columns into the left block.
inline void pack_four(const int8_t* row, int64_t stride, bool both, int8_t* left, int8_t* right, __m256i total[4]) {
  const __m256i r0 = load_columns(row, both), r1 = load_columns(row + stride, both);
  const __m256i r2 = load_columns(row + 2 * stride, both), r3 = load_columns(row + 3 * stride, both);
  const __m256i low01 = _mm256_unpacklo_epi8(r0, r1), high01 = _mm256_unpackhi_epi8(r0, r1);
  const __m256i low23 = _mm256_unpacklo_epi8(r2, r3), high23 = _mm256_unpackhi_epi8(r2, r3);
  // The lower 128 bits hold four columns of the left block, the upper 128 bits four of the right block.
  const __m256i a = _mm256_unpacklo_epi16(low01, low23), b = _mm256_unpackhi_epi16(low01, low23);
  const __m256i c = _mm256_unpacklo_epi16(high01, high23), d = _mm256_unpackhi_epi16(high01, high23);
  store_line(_mm256_permute2x128_si256(a, b, 0x20), left, total[0]);
  store_line(_mm256_permute2x128_si256(c, d, 0x20), left + 32, total[1]);
  if (!both) return;
  store_line(_mm256_permute2x128_si256(a, b, 0x31), right, total[2]);
  store_line(_mm256_permute2x128_si256(c, d, 0x31), right + 32, total[3]);
}

}  // namespace

void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums) {
  __m256i total[8] = {};
  for (int64_t at = 0; at < k; at += 4) {
    const int64_t to = at / kStepDepth * 2 * kBlockBytes + at % kStepDepth * 16;
    for (int64_t i = 0; i * 16 < columns; i += 2) {
      const bool both = columns - i * 16 > 16;
      int8_t* const right = both ? blocks[i + 1] + to : nullptr;
      pack_four(weight + at * stride + i * 16, stride, both, blocks[i] + to, right, total + 2 * i);
    }
  }
  for (int64_t j = 0; j * 8 < columns; ++j) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums) + j, total[j]);
}

}  // namespace koe5
