// The shape of AMX's eight tiles, which all products here share. Included by units compiled for AMX only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace koe5 {
namespace {

// Eight tiles of 16 rows of 64 bytes. Source: Intel's Software Developer's Manual, volume 2, LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// GCC's tile loads do not tell the compiler that they read memory: what was written must be there.
inline void finish_writes() { __asm__ volatile("" ::: "memory"); }

inline void configure_tiles() {
  // Static: GCC's intrinsic claims to read 8 bytes of it, and would drop the rest of a local one.
  static const TileConfig config;
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace koe5
