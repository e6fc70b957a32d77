// Packs weights. Compiled for AVX2, which every supported x86-64 CPU has.
#include <immintrin.h>

#include "linear_kernels.h"

namespace koe5 {
namespace {

// 255 x 128 is the largest multiple of 255 that fits into 16 bits with a sign.
constexpr int kLargestPair = 128;

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

void limit_pairs(int8_t* blocks, int64_t k, Remainders* found, int32_t* counts) {
  for (int i = 0; i < 16; ++i) counts[i] = 0;
  for (int64_t at = 0; at < k; at += 2) {
    // 32 bytes with four k of eight columns, alternately of the first and the last eight columns.
    int8_t* const line = blocks + at / kStepDepth * 2 * kBlockBytes + at % kStepDepth * 16;
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), *reinterpret_cast<const __m256i*>(line));
    const __m256i unsafe = _mm256_cmpgt_epi16(_mm256_abs_epi16(pairs), _mm256_set1_epi16(kLargestPair));
    uint32_t bytes = static_cast<uint32_t>(_mm256_movemask_epi8(unsafe)) & 0x55555555;
    for (; bytes != 0; bytes &= bytes - 1) {
      const int byte = __builtin_ctz(bytes), column = static_cast<int>(at % 4 * 4) + byte / 4;
      const int sum = line[byte] + line[byte + 1], rest = sum > 0 ? sum - kLargestPair : sum + kLargestPair;
      line[byte] = static_cast<int8_t>(line[byte] - rest);
      Remainders& two = found[column * (k / 4) + counts[column] / 2];
      if (counts[column] % 2 == 0) two = {};
      two.pair[counts[column] % 2] = static_cast<uint16_t>((at / 4 * 4 + byte % 4) / 2);
      two.value[counts[column]++ % 2] = static_cast<int16_t>(rest);
    }
  }
}

}  // namespace koe5
