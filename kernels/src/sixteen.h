// Sixteen floats or 32-bit integers: one register of AVX512, two of AVX2. What is written in these terms is compiled
// for both, does the same operations in the same order and gives the same bits.
// Everything here and in what includes it is local to the including file: a copy compiled with AVX512 must never stand
// in, at link time, for one that another CPU calls.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define KOE5_INLINE inline __attribute__((always_inline))

#ifdef __AVX512F__
#include "sixteen_avx512.h"
#else
#include "sixteen_avx2.h"
#endif

namespace koe5 {
namespace {

KOE5_INLINE __m256i load_halves(const uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
KOE5_INLINE void store_halves(uint16_t* to, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }

// Sixteen 16-bit values as the upper halves of 32 bits: bf16 becomes fp32.
KOE5_INLINE Ints as_upper(__m256i halves) { return shift_left<16>(widen(halves)); }

}  // namespace
}  // namespace koe5
