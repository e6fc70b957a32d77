// The AMX tile configuration that all products share. Include it only from units compiled for AMX.
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

// GCC's tile loads do not tell the compiler that they read memory. This barrier forces pending writes to memory first.
inline void finish_writes() { __asm__ volatile("" ::: "memory"); }

inline void configure_tiles() {
  // Static: GCC's intrinsic declares that it reads only 8 bytes, so the rest of a local object would be optimized away.
  static const TileConfig config;
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace koe5
