// Attention by BFMMLA, which multiplies a 2 x 4 by a 4 x 2 matrix of bf16 values and adds the result to 2 x 2 fp32
// sums.
//
//   packed keys    bf16[keys / 16][depth / 4][16][4]
//   packed values  bf16[depth / 16][keys / 4][16][4]
#include "attention_blocks.h"
#include "neon_tile.h"

namespace koe5 {
namespace {

constexpr int64_t kTileRows = 2 * kUnits, kColumns = 16, kStepDepth = 4, kStep = kColumns * kStepDepth;
constexpr int64_t kQueryRows = 4 * kTileRows;

struct Product {
  static inline Floats exp2(Floats x) { return exp2_for_bf16(x); }

  static KOE5_INLINE bfloat16x8_t weights_of(float32x4_t low, float32x4_t high) {
    return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low), high);
  }
  static KOE5_INLINE void store_eight(uint16_t* to, bfloat16x8_t weights, float32x4_t& sum) {
    // Converted at run time, because GCC 12 would load a constant with an instruction of ARM's fp16 extension.
    const bfloat16x8_t ones = weights_of(vdupq_n_f32(1), vdupq_n_f32(1));
    sum = vbfdotq_f32(sum, weights, ones);
    vst1q_u16(to, vreinterpretq_u16_bf16(weights));
  }
  // Rounds the weights, sums the rounded weights, and stores them in half the space of the scores (see Bf16Product).
  static inline void store_weights(float* scores, int64_t i, Floats a, Floats b, Floats* sum, Floats*) {
    uint16_t* const to = reinterpret_cast<uint16_t*>(scores) + i;
    store_eight(to, weights_of(a.a, a.b), sum->a);
    store_eight(to + 8, weights_of(a.c, a.d), sum->b);
    store_eight(to + 16, weights_of(b.a, b.b), sum->c);
    store_eight(to + 24, weights_of(b.c, b.d), sum->d);
  }
};

struct Dot {
  static KOE5_INLINE float32x4_t multiply(float32x4_t sums, bfloat16x8_t rows, bfloat16x8_t columns) {
    return vbfmmlaq_f32(sums, rows, columns);
  }
  static KOE5_INLINE bfloat16x8_t load(const uint16_t* from) { return vreinterpretq_bf16_u16(vld1q_u16(from)); }
};

// If the number of keys is not a multiple of 16, the last columns are undefined. Their scores are not used.
template <>
void pack_keys<Product>(const uint16_t* key, int64_t keys, int64_t depth, int64_t, uint32_t* packed) {
  uint16_t* const to = reinterpret_cast<uint16_t*>(packed);
  for (int64_t k = 0; k < keys; k += 2) {
    const uint16_t *const first = key + k * depth, *const second = k + 1 < keys ? first + depth : first;
    uint16_t* at = to + k / kColumns * kColumns * depth + k % kColumns * kStepDepth;
    for (int64_t d = 0; d < depth; d += 2 * kStepDepth, at += 2 * kStep) {
      const int32x4_t a = load_four(first + d, 0), b = load_four(second + d, 0);
      store_four(at, 0, zip_low64(a, b));
      store_four(at + kStep, 0, zip_high64(a, b));
    }
  }
}

// Pads the values with zeros to a multiple of 32 keys.
template <>
void pack_values<Product>(const uint16_t* value, int64_t keys, int64_t depth, uint32_t* packed) {
  uint16_t* const to = reinterpret_cast<uint16_t*>(packed);
  const int64_t padded = round_up(keys, 32);
  for (int64_t k = 0; k < padded; k += kStepDepth) {
    for (int64_t d = 0; d < depth; d += 8) {
      uint16x8_t row[kStepDepth];
      for (int64_t i = 0; i < kStepDepth; ++i) {
        row[i] = k + i < keys ? vld1q_u16(value + (k + i) * depth + d) : vdupq_n_u16(0);
      }
      const int32x4_t low01 = vreinterpretq_s32_u16(vzip1q_u16(row[0], row[1]));
      const int32x4_t low23 = vreinterpretq_s32_u16(vzip1q_u16(row[2], row[3]));
      const int32x4_t high01 = vreinterpretq_s32_u16(vzip2q_u16(row[0], row[1]));
      const int32x4_t high23 = vreinterpretq_s32_u16(vzip2q_u16(row[2], row[3]));
      store(to + d / kColumns * kColumns * padded + k / kStepDepth * kStep + d % kColumns * kStepDepth,
            Ints{vzip1q_s32(low01, low23), vzip2q_s32(low01, low23), vzip1q_s32(high01, high23),
                 vzip2q_s32(high01, high23)});
    }
  }
}

// The left operand (bf16) and the output (fp32) of a product.
struct Rows {
  const uint16_t* left;
  int64_t left_stride;
  float* out;
  int64_t out_stride;
};

KOE5_INLINE bfloat16x8_t unit_of(const uint16_t* first, const uint16_t* second) {
  return vreinterpretq_bf16_u16(vcombine_u16(vld1_u16(first), vld1_u16(second)));
}

// out[2 kUsed][16] = left x packed. If `rows` is odd, the last row is computed twice.
template <int kUsed>
void multiply_tile(const Rows& x, int64_t rows, const uint16_t* packed, int64_t steps) {
  UnitSums<Floats> s0{zeros(), zeros()}, s1 = s0, s2 = s0;
  const uint16_t* row[kTileRows];
  for (int64_t i = 0; i < kTileRows; ++i) row[i] = x.left + smaller(i, rows - 1) * x.left_stride;
  for (int64_t step = 0; step < steps; ++step, packed += kStep) {
    const int64_t at = step * kStepDepth;
    const bfloat16x8_t units[kUnits] = {unit_of(row[0] + at, row[1] + at), unit_of(row[2] + at, row[3] + at),
                                        unit_of(row[4] + at, row[5] + at)};
    multiply_columns<Dot, kUsed>(units, packed, s0, s1, s2);
  }
  store_two_rows(s0, x.out, x.out + x.out_stride);
  if constexpr (kUsed > 1) store_two_rows(s1, x.out + 2 * x.out_stride, x.out + 3 * x.out_stride);
  if constexpr (kUsed > 2) store_two_rows(s2, x.out + 4 * x.out_stride, x.out + 5 * x.out_stride);
}

// out[rows][columns] = left x packed. `x.out` must have space for an even number of rows and a multiple of 16 columns.
void multiply(const Rows& x, int64_t rows, const uint32_t* packed, int64_t steps, int64_t columns) {
  constexpr decltype(&multiply_tile<1>) kByUnits[] = {multiply_tile<1>, multiply_tile<2>, multiply_tile<3>};
  for (int64_t column = 0; column < columns; column += kColumns) {
    const uint16_t* const at = reinterpret_cast<const uint16_t*>(packed) + column * steps * kStepDepth;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t here = smaller(kTileRows, rows - row);
      const Rows tile{x.left + row * x.left_stride, x.left_stride, x.out + row * x.out_stride + column, x.out_stride};
      kByUnits[(here - 1) / 2](tile, here, at, steps);
    }
  }
}

}  // namespace

void attend_bfmmla(const AttentionTask& task) {
  const AttentionScratch scratch(task.scratch, task.depth);
  const float factor = score_factor(task.depth);
  const uint16_t* const weights = reinterpret_cast<const uint16_t*>(scratch.scores);
  for_each_block<Product>(
      task, task.depth, kQueryRows, scratch, [&](const KeyBlock& block, int64_t query, int64_t rows) {
        float rescale[kRows];
        const Rows scores{task.query + query * task.depth, task.depth, scratch.scores, kScoreStride};
        multiply(scores, rows, scratch.keys, task.depth / kStepDepth, block.keys);
        weigh_rows<Product>(block, factor, rows, scratch.scores, scratch.running + (query - task.first), rescale);
        const Rows context{weights, 2 * kScoreStride, scratch.block, round_up(task.depth, kPanel)};
        multiply(context, rows, scratch.values, block.padded / kStepDepth, task.depth);
        merge_rows(task, block, scratch, query, rows, rescale);
      });
}

}  // namespace koe5
