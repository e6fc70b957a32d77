// Packs weights. Compiled for NEON, which every 64-bit ARM CPU has.
#include <arm_neon.h>

#include "linear_kernels.h"

namespace koe5 {
namespace {

// Packs eight k of 16 columns and adds their sums to `sums`. If `k` < 8, only `k` rows exist; the others are zero.
inline void pack_eight(const int8_t* row, int64_t stride, int64_t k, int8_t* to, int32_t* sums) {
  int8x16_t rows[8], next[8];
  for (int i = 0; i < 8; ++i) rows[i] = i < k ? vld1q_s8(row + i * stride) : vdupq_n_s8(0);
  // Each turn interleaves the bytes of rows i and i + 4. Three turns transpose the eight rows.
  for (int turn = 0; turn < 3; ++turn) {
    for (int i = 0; i < 4; ++i) {
      next[2 * i] = vzip1q_s8(rows[i], rows[i + 4]);
      next[2 * i + 1] = vzip2q_s8(rows[i], rows[i + 4]);
    }
    for (int i = 0; i < 8; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < 8; ++i) vst1q_s8(to + 16 * i, rows[i]);
  for (int i = 0; i < 8; i += 2) {
    const int32x4_t four = vpaddq_s32(vpaddlq_s16(vpaddlq_s8(rows[i])), vpaddlq_s16(vpaddlq_s8(rows[i + 1])));
    vst1q_s32(sums + 2 * i, vaddq_s32(vld1q_s32(sums + 2 * i), four));
  }
}

}  // namespace

void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums) {
  for (int64_t i = 0; i < columns; ++i) sums[i] = 0;
  for (int64_t at = 0; at < k; at += 8) {
    const int64_t to = at / kStepDepth * 2 * kBlockBytes + at % kStepDepth * 16;
    for (int64_t column = 0; column < columns; column += 16) {
      pack_eight(weight + at * stride + column, stride, k - at, blocks[column / 16] + to, sums + column);
    }
  }
}

}  // namespace koe5
