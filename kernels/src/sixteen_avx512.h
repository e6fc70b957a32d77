// Sixteen values in one register; see sixteen.h. Requires only AVX512 F, BW, DQ and VL.
#pragma once

#include "sixteen_x86.h"

namespace koe5 {
namespace {

using Floats = __m512;
using Ints = __m512i;

// Maximum number of Floats per row of a register tile: with 6 rows, the sums take 24 of 32 registers.
constexpr int kMostVectors = 4;

KOE5_INLINE Floats zeros() { return _mm512_setzero_ps(); }
KOE5_INLINE Ints int_zeros() { return _mm512_setzero_si512(); }
KOE5_INLINE Floats spread(float x) { return _mm512_set1_ps(x); }
KOE5_INLINE Ints spread_int(int32_t x) { return _mm512_set1_epi32(x); }

KOE5_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
KOE5_INLINE Ints load_ints(const void* from) { return _mm512_loadu_si512(from); }
KOE5_INLINE void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
KOE5_INLINE void store(void* to, Ints x) { _mm512_storeu_si512(to, x); }

KOE5_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
KOE5_INLINE Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
KOE5_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
KOE5_INLINE Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
KOE5_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// Returns b if a or b is NaN.
KOE5_INLINE Floats larger_of(Floats a, Floats b) { return _mm512_max_ps(a, b); }
// Returns the smaller of the magnitudes of x and `end`, with the sign of x. `end` counts as the smaller one if x is
// NaN.
KOE5_INLINE Floats smaller_magnitude(Floats x, Floats end) { return _mm512_range_ps(x, end, 2); }

KOE5_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
KOE5_INLINE Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
KOE5_INLINE Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
KOE5_INLINE Ints larger_of(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
KOE5_INLINE Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
KOE5_INLINE Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int kBits>
KOE5_INLINE Ints shift_left(Ints x) {
  return _mm512_slli_epi32(x, kBits);
}
template <int kBits>
KOE5_INLINE Ints shift_right(Ints x) {
  return _mm512_srli_epi32(x, kBits);
}

KOE5_INLINE float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
KOE5_INLINE float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
KOE5_INLINE int32_t largest_of(Ints x) { return _mm512_reduce_max_epi32(x); }
KOE5_INLINE float first_of(Floats x) { return _mm512_cvtss_f32(x); }

KOE5_INLINE Ints bits_of(Floats x) { return _mm512_castps_si512(x); }
KOE5_INLINE Floats floats_of_bits(Ints x) { return _mm512_castsi512_ps(x); }
KOE5_INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
KOE5_INLINE Ints rounded(Floats x) { return _mm512_cvtps_epi32(x); }
KOE5_INLINE Ints widen(__m256i halves) { return _mm512_cvtepu16_epi32(halves); }
KOE5_INLINE __m256i upper_halves(Ints x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)); }
KOE5_INLINE Floats from_fp16(__m256i x) { return _mm512_cvtph_ps(x); }
KOE5_INLINE __m256i to_fp16(Floats x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
// Returns `there` in lanes in which x is NaN, and `otherwise` in the others.
KOE5_INLINE Ints where_nan(Floats x, Ints there, Ints otherwise) {
  return _mm512_mask_mov_epi32(otherwise, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), there);
}

// On AVX512, fraction_of and scale_by_floor accept any x.
KOE5_INLINE Floats exponent_in_range(Floats x) { return x; }
// Returns x - floor(x).
KOE5_INLINE Floats fraction_of(Floats x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
// Returns p * 2^floor(x).
KOE5_INLINE Floats scale_by_floor(Floats p, Floats x) { return _mm512_scalef_ps(p, x); }

// Loads sixteen 16-bit values if `present`, otherwise returns zeros.
KOE5_INLINE __m256i load_halves_if(bool present, const uint16_t* from) {
  return _mm256_maskz_loadu_epi16(present ? 0xffff : 0, from);
}
// Loads the first n >= 0 of sixteen 32-bit values. The others are zero, and their memory is not read.
KOE5_INLINE Ints load_first(const void* from, int64_t n) {
  return _mm512_maskz_loadu_epi32(n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1), from);
}
// Stores x without its first n values.
KOE5_INLINE void store_beyond(float* to, int64_t n, Floats x) {
  _mm512_mask_storeu_ps(to, n <= 0 ? 0xffff : static_cast<__mmask16>(0xffffu << n), x);
}

// These operate on 16-bit lanes.
KOE5_INLINE Ints spread_half(int32_t x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
KOE5_INLINE Ints add_halves(Ints a, Ints b) { return _mm512_add_epi16(a, b); }
KOE5_INLINE Ints larger_halves(Ints a, Ints b) { return _mm512_max_epu16(a, b); }
KOE5_INLINE __m256i low_half(Ints x) { return _mm512_castsi512_si256(x); }
KOE5_INLINE __m256i high_half(Ints x) { return _mm512_extracti64x4_epi64(x, 1); }
KOE5_INLINE Ints halves_of(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Converts 32 values to 16 bits with saturation. Each 128 bits of the result hold four of a, then four of b.
KOE5_INLINE Ints pack_halves(Ints a, Ints b) { return _mm512_packs_epi32(a, b); }
// Converts the results of two pack_halves calls to 64 bytes in order, saturated to 0..255.
KOE5_INLINE Ints to_bytes(Ints a, Ints b) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b));
}
// Stores the first n bytes, where n is a multiple of 16, or all if n is at least 64.
KOE5_INLINE void store_bytes(uint8_t* to, Ints bytes, int64_t n) {
  _mm512_mask_storeu_epi8(to, n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1, bytes);
}

// These operate within each 128 bits.
KOE5_INLINE Ints interleave_low32(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
KOE5_INLINE Ints interleave_high32(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
KOE5_INLINE Ints interleave_low64(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
KOE5_INLINE Ints interleave_high64(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
// Return the first and third (even) or second and fourth (odd) 128 bits of a, then those of b.
KOE5_INLINE Ints even_quarters(Ints a, Ints b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
KOE5_INLINE Ints odd_quarters(Ints a, Ints b) { return _mm512_shuffle_i32x4(a, b, 0xdd); }

// Tables of 32 values, sixteen lookups at a time. The tables stay in registers during a loop.
template <int kTables, const float (&kValues)[kTables][32]>
struct Tables {
  __m512 low[kTables], high[kTables];

  KOE5_INLINE Tables() {
    for (int i = 0; i < kTables; ++i) low[i] = _mm512_load_ps(kValues[i]), high[i] = _mm512_load_ps(kValues[i] + 16);
  }
  // Uses the lowest five bits of `at`.
  template <int kTable>
  KOE5_INLINE Floats of(Ints at) const {
    return _mm512_permutex2var_ps(low[kTable], at, high[kTable]);
  }
};

}  // namespace
}  // namespace koe5
