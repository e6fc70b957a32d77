// Attention by AMX-BF16: a tile instruction multiplies 16 queries (or rows of weights) x 32 values by 32 x 16 columns.
// The exponentials, not the products, are what takes the time here.
#include "attention_blocks.h"

namespace koe5 {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileSteps = 16;  // dwords of a row: 32 bf16 values
constexpr int64_t kPackedBytes = kPanel * 4;

// Palette 1, eight tiles of 16 rows of 64 bytes. Source: Intel SDM, volume 1, section 18.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// GCC's tile loads do not tell the compiler that they read memory: what was written must be there.
inline void finish_writes() { __asm__ volatile("" ::: "memory"); }

void zero_queries(uint32_t* to, int64_t from, int64_t n) {
  for (int64_t i = from; i < n; i += 16) _mm512_storeu_si512(to + i, _mm512_setzero_si512());
}

// Queries as 16 rows of `steps` dwords, with zeros where depth or rows end.
void copy_queries(const AttentionTask& task, int64_t query, int64_t rows, int64_t steps, uint32_t* to) {
  if (rows < kTileRows || steps != task.depth / 2) zero_queries(to, 0, kTileRows * steps);
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* from = task.query + (query + row) * task.stride;
    for (int64_t i = 0; i < task.depth; i += 16) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * steps + i / 2), half);
    }
  }
}

// out[16][16] = left[16][steps] x packed[steps][16 of 64].
void multiply_one(const uint32_t* left, int64_t left_bytes, const uint32_t* packed, int64_t steps, float* out,
                  int64_t out_bytes) {
  finish_writes();
  _tile_zero(0);
  for (int64_t step = 0; step < steps; step += kTileSteps) {
    _tile_loadd(4, left + step, left_bytes);
    _tile_loadd(5, packed + step * kPanel, kPackedBytes);
    _tile_dpbf16ps(0, 4, 5);
  }
  _tile_stored(0, out, out_bytes);
}

// out[16][64] = left[16][steps] x packed[steps][64]. Two tiles take turns on each side, so that loads run ahead.
void multiply_four(const uint32_t* left, int64_t left_bytes, const uint32_t* packed, int64_t steps, float* out,
                   int64_t out_bytes) {
  finish_writes();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; step += kTileSteps) {
    const uint32_t* at = packed + step * kPanel;
    _tile_loadd(4, left + step, left_bytes);
    _tile_loadd(5, at, kPackedBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, at + 16, kPackedBytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, at + 32, kPackedBytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, at + 48, kPackedBytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + 16, out_bytes);
  _tile_stored(2, out + 32, out_bytes);
  _tile_stored(3, out + 48, out_bytes);
}

// out[16][columns] = left x packed, in panels of 64 columns.
void multiply_panels(const uint32_t* left, int64_t left_stride, const uint32_t* packed, int64_t steps, int64_t columns,
                     float* out, int64_t out_stride) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    const uint32_t* panel = packed + column * steps;
    if (columns - column > kPanel - 16) {
      multiply_four(left, 4 * left_stride, panel, steps, out + column, 4 * out_stride);
      continue;
    }
    for (int64_t i = 0; i < columns - column; i += 16) {
      multiply_one(left, 4 * left_stride, panel + i, steps, out + column + i, 4 * out_stride);
    }
  }
}

void attend_rows(const AttentionTask& task, const AttentionScratch& scratch, float factor, const KeyBlock& block,
                 int64_t query, int64_t rows) {
  const int64_t depth_steps = round_up(task.depth, 32) / 2;
  const uint32_t* weights = reinterpret_cast<uint32_t*>(scratch.scores);
  float rescale[kRows];
  copy_queries(task, query, rows, depth_steps, scratch.queries);
  multiply_panels(scratch.queries, depth_steps, scratch.keys, depth_steps, block.keys, scratch.scores, kScoreStride);
  weigh_rows<Bf16Product>(block, factor, rows, scratch.scores, scratch.running + (query - task.first), rescale);
  multiply_panels(weights, kScoreStride, scratch.values, block.padded / 2, task.depth, scratch.block,
                  round_up(task.depth, kPanel));
  merge_rows(task, block, scratch, query, rows, rescale);
}

}  // namespace

void attend_amx(const AttentionTask& task) {
  const AttentionScratch scratch(task.scratch, task.depth);
  const float factor = score_factor(task.depth);
  // Static: GCC's intrinsic claims to read 8 bytes of it, and would drop the rest of a local one.
  static const TileConfig config;
  _tile_loadconfig(&config);
  for_each_block<Bf16Product>(task, round_up(task.depth, 32), kTileRows, scratch,
                              [&](const KeyBlock& block, int64_t query, int64_t rows) {
                                attend_rows(task, scratch, factor, block, query, rows);
                              });
  _tile_release();
}

}  // namespace koe5
