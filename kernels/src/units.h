// Sizes rounded up to whole units. Static, so that the linker never shares a copy compiled for AVX512 with code for
// another CPU.
#pragma once

#include <cstdint>

namespace koe5 {

constexpr int64_t kCacheLine = 64;  // bytes

// Number of units that hold n.
static inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// n rounded up to a multiple of the unit.
static inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

}  // namespace koe5
