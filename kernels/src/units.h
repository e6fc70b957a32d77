// Divisions of sizes by a unit, rounded up. The functions are static, so that the linker never uses a copy
// compiled for AVX512 in code for another CPU.
#pragma once

#include <cstdint>

namespace koe5 {

constexpr int64_t kCacheLine = 64;  // bytes

static inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
static inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

}  // namespace koe5
