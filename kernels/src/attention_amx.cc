// Attention by AMX-BF16. A tile instruction multiplies a 16 x 32 matrix of queries or softmax weights by a 32 x 16
// matrix of keys or values.
#include "amx_tiles.h"
#include "attention_blocks.h"

namespace koe5 {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileSteps = 16;  // dwords per row of a tile, two bf16 values each
constexpr int64_t kPackedBytes = kPanel * 4;

void zero_queries(uint32_t* to, int64_t from, int64_t n) {
  for (int64_t i = from; i < n; i += 16) _mm512_storeu_si512(to + i, _mm512_setzero_si512());
}

// Copies `rows` queries, starting at `query`, to 16 or 32 rows of `steps` dwords. Fills the rest with zeros.
void copy_queries(const AttentionTask& task, int64_t query, int64_t rows, int64_t steps, uint32_t* to) {
  if (rows % kTileRows != 0 || steps != task.depth / 2) zero_queries(to, 0, round_up(rows, kTileRows) * steps);
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* from = task.query + (query + row) * task.depth;
    for (int64_t i = 0; i < task.depth; i += 16) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * steps + i / 2), half);
    }
  }
}

// The left operand and the output of out[16 or 32 rows][columns] = left x packed.
struct TileProduct {
  const uint32_t* left;
  int64_t left_stride;  // dwords between rows
  int64_t steps;        // dwords per row of `left`
  float* out;
  int64_t out_stride;
};

// Computes 16 or 32 rows x 16 or 32 columns. Tiles 0 to 3 hold sums, tiles 4 and 5 hold rows of `left`, and tiles 6
// and 7 hold columns of `packed`.
template <bool kTwoRows, bool kTwoColumns>
void multiply_block(const TileProduct& x, const uint32_t* packed, float* out) {
  const int64_t left_bytes = 4 * x.left_stride, out_bytes = 4 * x.out_stride;
  finish_writes();
  _tile_zero(0);
  if (kTwoColumns) _tile_zero(1);
  if (kTwoRows) _tile_zero(2);
  if (kTwoRows && kTwoColumns) _tile_zero(3);
  for (int64_t step = 0; step < x.steps; step += kTileSteps) {
    _tile_loadd(6, packed + step * kPanel, kPackedBytes);
    _tile_loadd(4, x.left + step, left_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoRows) {
      _tile_loadd(5, x.left + kTileRows * x.left_stride + step, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kTwoColumns) {
      _tile_loadd(7, packed + step * kPanel + 16, kPackedBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwoRows) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, out_bytes);
  if (kTwoColumns) _tile_stored(1, out + 16, out_bytes);
  if (kTwoRows) _tile_stored(2, out + kTileRows * x.out_stride, out_bytes);
  if (kTwoRows && kTwoColumns) _tile_stored(3, out + kTileRows * x.out_stride + 16, out_bytes);
}

template <bool kTwoRows>
void multiply_columns(const TileProduct& x, const uint32_t* packed, int64_t columns) {
  for (int64_t column = 0; column < columns; column += 32) {
    const uint32_t* const at = packed + column / kPanel * kPanel * x.steps + column % kPanel;
    if (columns - column > 16) {
      multiply_block<kTwoRows, true>(x, at, x.out + column);
    } else {
      multiply_block<kTwoRows, false>(x, at, x.out + column);
    }
  }
}

void multiply_panels(const TileProduct& x, const uint32_t* packed, int64_t rows, int64_t columns) {
  if (rows > kTileRows) {
    multiply_columns<true>(x, packed, columns);
  } else {
    multiply_columns<false>(x, packed, columns);
  }
}

void attend_rows(const AttentionTask& task, const AttentionScratch& scratch, float factor, const KeyBlock& block,
                 int64_t query, int64_t rows) {
  const int64_t depth_steps = round_up(task.depth, 32) / 2;
  const uint32_t* weights = reinterpret_cast<uint32_t*>(scratch.scores);
  float rescale[kRows];
  copy_queries(task, query, rows, depth_steps, scratch.queries);
  const TileProduct scores{scratch.queries, depth_steps, depth_steps, scratch.scores, kScoreStride};
  multiply_panels(scores, scratch.keys, rows, block.keys);
  weigh_rows<Bf16Product>(block, factor, rows, scratch.scores, scratch.running + (query - task.first), rescale);
  const TileProduct context{weights, kScoreStride, block.padded / 2, scratch.block, round_up(task.depth, kPanel)};
  multiply_panels(context, scratch.values, rows, task.depth);
  merge_rows(task, block, scratch, query, rows, rescale);
}

}  // namespace

void attend_amx(const AttentionTask& task) {
  const AttentionScratch scratch(task.scratch, task.depth);
  const float factor = score_factor(task.depth);
  configure_tiles();
  for_each_block<Bf16Product>(task, round_up(task.depth, 32), kRows, scratch,
                              [&](const KeyBlock& block, int64_t query, int64_t rows) {
                                attend_rows(task, scratch, factor, block, query, rows);
                              });
  _tile_release();
}

}  // namespace koe5
