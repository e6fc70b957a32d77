// Definitions for both AVX2 and AVX512; see sixteen.h.
#pragma once

#include <immintrin.h>

namespace koe5 {
namespace {

using Halves = __m256i;  // sixteen 16-bit values

KOE5_INLINE Halves load_halves(const uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
KOE5_INLINE void store_halves(uint16_t* to, Halves x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
KOE5_INLINE float root_of(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

}  // namespace
}  // namespace koe5
