// Sixteen floats or 32-bit integers: one AVX512 register, two AVX2 registers or four NEON registers. Code written with
// these types compiles for all three and does the same operations in the same order, so results differ only for NaN and
// subnormal values.
// Everything in this header, and in the headers that include it, is local to the source file that includes it, so that
// the linker never uses a copy compiled for AVX512 in code that runs on another CPU.
#pragma once

#include <cstdint>

#define KOE5_INLINE inline __attribute__((always_inline))

#if defined(__aarch64__)
#include "sixteen_neon.h"
#elif defined(__AVX512F__)
#include "sixteen_avx512.h"
#else
#include "sixteen_avx2.h"
#endif

namespace koe5 {
namespace {

// Widens sixteen 16-bit values to the upper halves of 32-bit lanes, which converts bf16 to fp32.
KOE5_INLINE Ints as_upper(Halves halves) { return shift_left<16>(widen(halves)); }

}  // namespace
}  // namespace koe5
