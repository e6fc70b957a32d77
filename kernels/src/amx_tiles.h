// The AMX tile configuration of all matrix products. Include it only in source files compiled for AMX.
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

// GCC's intrinsics for tile loads do not declare that they read memory, so the compiler may move earlier writes after
// them. This barrier prevents that.
inline void finish_writes() { __asm__ volatile("" ::: "memory"); }

inline void configure_tiles() {
  // Static, because GCC's intrinsic declares that it reads only 8 bytes, and GCC would not store the rest of a local
  // object.
  static const TileConfig config;
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace koe5
