// Sixteen values in two registers; see sixteen.h. Requires only AVX2, FMA and F16C.
#pragma once

#include "sixteen_x86.h"

namespace koe5 {
namespace {

// Copied member by member, because GCC 12 copies plain structs of this size through memory, even inside loops.
#define KOE5_PAIR(Type, Register)                                                             \
  struct Type {                                                                               \
    Register low, high;                                                                       \
    Type() = default;                                                                         \
    KOE5_INLINE Type(Register first, Register second) : low(first), high(second) {}           \
    KOE5_INLINE Type(const Type& from) : low(from.low), high(from.high) {}                    \
    KOE5_INLINE Type& operator=(const Type& from) {                                           \
      low = from.low, high = from.high;                                                       \
      return *this;                                                                           \
    }                                                                                         \
  };
KOE5_PAIR(Floats, __m256)
KOE5_PAIR(Ints, __m256i)
#undef KOE5_PAIR

// Maximum number of Floats per row of a register tile: with 6 rows, the sums take 12 of 16 registers.
constexpr int kMostVectors = 1;

KOE5_INLINE Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
KOE5_INLINE Ints int_zeros() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
KOE5_INLINE Floats spread(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
KOE5_INLINE Ints spread_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

KOE5_INLINE Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
KOE5_INLINE Ints load_ints(const void* from) {
  const __m256i* const at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
KOE5_INLINE void store(float* to, Floats x) { _mm256_storeu_ps(to, x.low), _mm256_storeu_ps(to + 8, x.high); }
KOE5_INLINE void store(void* to, Ints x) {
  __m256i* const at = static_cast<__m256i*>(to);
  _mm256_storeu_si256(at, x.low), _mm256_storeu_si256(at + 1, x.high);
}

#define KOE5_TWICE(Type, name, operation)  \
  KOE5_INLINE Type name(Type a, Type b) {  \
    return {operation(a.low, b.low), operation(a.high, b.high)}; \
  }
KOE5_TWICE(Floats, add, _mm256_add_ps)
KOE5_TWICE(Floats, subtract, _mm256_sub_ps)
KOE5_TWICE(Floats, multiply, _mm256_mul_ps)
KOE5_TWICE(Floats, divide, _mm256_div_ps)
// Returns b if a or b is NaN.
KOE5_TWICE(Floats, larger_of, _mm256_max_ps)
KOE5_TWICE(Ints, add, _mm256_add_epi32)
KOE5_TWICE(Ints, subtract, _mm256_sub_epi32)
KOE5_TWICE(Ints, multiply, _mm256_mullo_epi32)
KOE5_TWICE(Ints, larger_of, _mm256_max_epi32)
KOE5_TWICE(Ints, both, _mm256_and_si256)
KOE5_TWICE(Ints, either, _mm256_or_si256)
// The next four operate within each 128 bits.
KOE5_TWICE(Ints, interleave_low32, _mm256_unpacklo_epi32)
KOE5_TWICE(Ints, interleave_high32, _mm256_unpackhi_epi32)
KOE5_TWICE(Ints, interleave_low64, _mm256_unpacklo_epi64)
KOE5_TWICE(Ints, interleave_high64, _mm256_unpackhi_epi64)
// The next two operate on 16-bit lanes.
KOE5_TWICE(Ints, add_halves, _mm256_add_epi16)
KOE5_TWICE(Ints, larger_halves, _mm256_max_epu16)
// Converts 32 values to 16 bits with saturation. Each 128 bits of the result hold four of a, then four of b.
KOE5_TWICE(Ints, pack_halves, _mm256_packs_epi32)
#undef KOE5_TWICE

KOE5_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
KOE5_INLINE __m256 smaller_magnitude(__m256 x, __m256 end) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_and_ps(sign, x), _mm256_min_ps(_mm256_andnot_ps(sign, x), end));
}
// Returns the smaller of the magnitudes of x and `end`, with the sign of x. `end` counts as the smaller one if x is
// NaN.
KOE5_INLINE Floats smaller_magnitude(Floats x, Floats end) {
  return {smaller_magnitude(x.low, end.low), smaller_magnitude(x.high, end.high)};
}
template <int kBits>
KOE5_INLINE Ints shift_left(Ints x) {
  return {_mm256_slli_epi32(x.low, kBits), _mm256_slli_epi32(x.high, kBits)};
}
template <int kBits>
KOE5_INLINE Ints shift_right(Ints x) {
  return {_mm256_srli_epi32(x.low, kBits), _mm256_srli_epi32(x.high, kBits)};
}

// Adds the lower and the upper half of the lanes, then the halves of the result, and so on, as _mm512_reduce_add_ps
// does.
KOE5_INLINE float sum_of(Floats x) {
  const __m256 eight = _mm256_add_ps(x.high, x.low);
  const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
KOE5_INLINE float largest_of(Floats x) {
  const __m256 eight = _mm256_max_ps(x.high, x.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
KOE5_INLINE int32_t largest_of(Ints x) {
  const __m256i eight = _mm256_max_epi32(x.high, x.low);
  const __m128i four = _mm_max_epi32(_mm256_extracti128_si256(eight, 1), _mm256_castsi256_si128(eight));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
KOE5_INLINE float first_of(Floats x) { return _mm256_cvtss_f32(x.low); }

KOE5_INLINE Ints bits_of(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
KOE5_INLINE Floats floats_of_bits(Ints x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
KOE5_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
KOE5_INLINE Ints rounded(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
// Swaps the middle quarters, which a pack instruction has exchanged.
KOE5_INLINE __m256i in_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xd8); }
KOE5_INLINE Ints widen(__m256i halves) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves)),
          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(halves, 1))};
}
KOE5_INLINE __m256i upper_halves(Ints x) {
  const Ints shifted = shift_right<16>(x);
  return in_order(_mm256_packus_epi32(shifted.low, shifted.high));
}
KOE5_INLINE Floats from_fp16(__m256i x) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
KOE5_INLINE __m256i to_fp16(Floats x) {
  return _mm256_set_m128i(_mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
}
KOE5_INLINE __m256i where_nan(__m256 x, __m256i there, __m256i otherwise) {
  return _mm256_blendv_epi8(otherwise, there, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
// Returns `there` in lanes in which x is NaN, and `otherwise` in the others.
KOE5_INLINE Ints where_nan(Floats x, Ints there, Ints otherwise) {
  return {where_nan(x.low, there.low, otherwise.low), where_nan(x.high, there.high, otherwise.high)};
}

KOE5_INLINE Floats floor_of(Floats x) { return {_mm256_floor_ps(x.low), _mm256_floor_ps(x.high)}; }
// Raises x to at least -127, for which scale_by_floor returns 0.
KOE5_INLINE Floats exponent_in_range(Floats x) { return larger_of(spread(-127.0f), x); }
KOE5_INLINE Floats fraction_of(Floats x) { return subtract(x, floor_of(x)); }
// Returns p * 2^floor(x), for x up to 127, or NaN if x is NaN.
KOE5_INLINE Floats scale_by_floor(Floats p, Floats x) {
  const Ints exponent = add(rounded(floor_of(x)), spread_int(127));
  return multiply(p, floats_of_bits(shift_left<23>(exponent)));
}

KOE5_INLINE __m256i lanes_from(int64_t n) {  // all bits set in lanes n..7
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(static_cast<int32_t>(n) - 1));
}
KOE5_INLINE __m256i lanes_below(int64_t n) { return _mm256_xor_si256(lanes_from(n), _mm256_set1_epi32(-1)); }
// Loads sixteen 16-bit values if `present`, otherwise returns zeros.
KOE5_INLINE __m256i load_halves_if(bool present, const uint16_t* from) {
  return present ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)) : _mm256_setzero_si256();
}
// Loads the first n >= 0 of sixteen 32-bit values. The others are zero, and their memory is not read.
KOE5_INLINE Ints load_first(const void* from, int64_t n) {
  const int* const at = static_cast<const int*>(from);
  return {_mm256_maskload_epi32(at, lanes_below(n)), _mm256_maskload_epi32(at + 8, lanes_below(n - 8))};
}
// Stores x without its first n values.
KOE5_INLINE void store_beyond(float* to, int64_t n, Floats x) {
  _mm256_maskstore_ps(to, lanes_from(n), x.low);
  _mm256_maskstore_ps(to + 8, lanes_from(n - 8), x.high);
}

KOE5_INLINE Ints spread_half(int32_t x) {
  const __m256i each = _mm256_set1_epi16(static_cast<int16_t>(x));
  return {each, each};
}
KOE5_INLINE __m256i low_half(Ints x) { return x.low; }
KOE5_INLINE __m256i high_half(Ints x) { return x.high; }
KOE5_INLINE Ints halves_of(__m256i low, __m256i high) { return {low, high}; }

// Converts the results of two pack_halves calls to 64 bytes in order, saturated to 0..255.
KOE5_INLINE Ints to_bytes(Ints a, Ints b) {
  const __m256i pairs = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i low = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a.low, b.low), pairs);
  const __m256i high = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a.high, b.high), pairs);
  const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
  return {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
}
// Stores the first n bytes, where n is a multiple of 16, or all if n is at least 64.
KOE5_INLINE void store_bytes(uint8_t* to, Ints bytes, int64_t n) {
  __m128i* const at = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(at, _mm256_castsi256_si128(bytes.low));
  if (n > 16) _mm_storeu_si128(at + 1, _mm256_extracti128_si256(bytes.low, 1));
  if (n > 32) _mm_storeu_si128(at + 2, _mm256_castsi256_si128(bytes.high));
  if (n > 48) _mm_storeu_si128(at + 3, _mm256_extracti128_si256(bytes.high, 1));
}

// Return the first and third (even) or second and fourth (odd) 128 bits of a, then those of b.
KOE5_INLINE Ints even_quarters(Ints a, Ints b) {
  return {_mm256_permute2x128_si256(a.low, a.high, 0x20), _mm256_permute2x128_si256(b.low, b.high, 0x20)};
}
KOE5_INLINE Ints odd_quarters(Ints a, Ints b) {
  return {_mm256_permute2x128_si256(a.low, a.high, 0x31), _mm256_permute2x128_si256(b.low, b.high, 0x31)};
}

// Tables of 32 values, sixteen lookups at a time: the lowest three bits of an index select within each group of eight,
// the next two bits select the group. Gathers are no faster on new CPUs and several times slower on others.
template <int kTables, const float (&kValues)[kTables][32]>
struct Tables {
  // Uses the lowest five bits of `at`.
  template <int kTable>
  KOE5_INLINE Floats of(Ints at) const {
    return {eight_of(kValues[kTable], at.low), eight_of(kValues[kTable], at.high)};
  }
  static KOE5_INLINE __m256 eight_of(const float* table, __m256i at) {
    const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));
    const __m256 bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(at, 27));
    const __m256 a = _mm256_permutevar8x32_ps(_mm256_load_ps(table), at);
    const __m256 b = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), at);
    const __m256 c = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 16), at);
    const __m256 d = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 24), at);
    return _mm256_blendv_ps(_mm256_blendv_ps(a, b, bit3), _mm256_blendv_ps(c, d, bit3), bit4);
  }
};

}  // namespace
}  // namespace koe5
