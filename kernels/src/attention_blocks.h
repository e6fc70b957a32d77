// Code of attention that instruction sets share: blocks of keys, the packing of keys and values, scratch memory.
// Local to the file that includes it; see sixteen.h.
//
// Each step of a product multiplies one dword (32 bits) of each operand: two bf16 values (Bf16Product) or one fp32
// value (Fp32Product). Keys and values are packed in panels of 64 columns, except for BFMMLA (attention_bfmmla.cc):
//   packed keys    dword[keys / 64][steps of depth][64]
//   packed values  dword[depth / 64][steps of keys][64]
// AMX loads 16 x 16 dwords of these layouts as one tile.
#pragma once

#include <cstdint>

#include "attention.h"
#include "sixteen.h"
#include "softmax.h"
#include "units.h"

namespace koe5 {
namespace {

// Keys per block. Longer texts take several blocks, with a running maximum and sum per query. With a depth of 64, 512
// packed keys take 64 KiB in bf16 and 128 KiB in fp32, which fits in L2.
constexpr int64_t kKeys = 512;
constexpr int64_t kPanel = 64;
constexpr int64_t kRows = 32;  // maximum number of queries per product
// Dwords between rows of scores. Not a multiple of 1 KiB, so that rows do not compete for the same cache sets.
constexpr int64_t kScoreStride = kKeys + 16;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Layout of a task's scratch memory, in dwords.
struct AttentionScratch {
  uint32_t* keys;
  uint32_t* values;
  uint32_t* queries;  // [kRows][depth]
  float* scores;      // [kRows][kScoreStride]; overwritten by the weights
  float* block;       // [kRows][depth rounded up to 64]: the context of one block of keys
  RunningSoftmax* running;

  AttentionScratch(void* memory, int64_t depth) {
    const int64_t padded = round_up(depth, kPanel);
    keys = static_cast<uint32_t*>(memory);
    values = keys + kKeys * padded;
    queries = values + kKeys * padded;
    scores = reinterpret_cast<float*>(queries + kRows * padded);
    block = scores + kRows * kScoreStride;
    running = reinterpret_cast<RunningSoftmax*>(block + kRows * padded);
  }
  static int64_t dwords(int64_t depth) {
    const int64_t padded = round_up(depth, kPanel);
    return 2 * kKeys * padded + kRows * (2 * padded + kScoreStride) + 2 * kQueriesPerTask;
  }
};

// Two bf16 values per step, for AVX512-BF16 and AMX.
struct Bf16Product {
  static constexpr int64_t kStep = 2;

  static inline Floats exp2(Floats x) { return exp2_for_bf16(x); }

  static inline void store_keys(uint32_t* to, int64_t step, int64_t, Ints pair) {
    store(to + step * kPanel, pair);
  }
  static inline Ints value_pair(Halves even, Halves odd) {
    return either(widen(even), as_upper(odd));
  }
  static inline void store_values(uint32_t* to, int64_t pair, Halves even, Halves odd) {
    store(to + pair * kPanel, value_pair(even, odd));
  }
#ifdef __AVX512BF16__
  // Rounds the weights to nearest even. Sums the rounded weights, by multiplying them by ones, so that after the
  // division by their sum they add up to one. A weight is half as wide as a score, so no unread score is overwritten.
  static inline void store_weights(float* scores, int64_t i, Floats a, Floats b, Floats* sum, Floats*) {
    const __m512bh weights = _mm512_cvtne2ps_pbh(b, a);
    const Ints ones = spread_int(0x3f803f80);
    *sum = _mm512_dpbf16_ps(*sum, weights, reinterpret_cast<__m512bh>(ones));
    store(reinterpret_cast<uint32_t*>(scores) + i / 2, reinterpret_cast<Ints>(weights));
  }
#endif
};

// One fp32 value per step, converted from bf16, for the levels whose attention computes in fp32.
struct Fp32Product {
  static constexpr int64_t kStep = 1;

  static inline Floats exp2(Floats x) { return exp2_nonpositive(x); }

  static inline Floats add_product(Floats sum, Floats a, Floats b) { return multiply_add(a, b, sum); }

  static inline void copy_query(const uint16_t* query, int64_t depth, uint32_t* to) {
    for (int64_t i = 0; i < depth; i += 16) store(to + i, as_upper(load_halves(query + i)));
  }

  static inline void store_keys(uint32_t* to, int64_t step, int64_t steps, Ints pair) {
    (void)steps;
    store(to + 2 * step * kPanel, shift_left<16>(pair));
    store(to + (2 * step + 1) * kPanel, both(pair, spread_int(~0xffff)));
  }
  static inline void store_values(uint32_t* to, int64_t pair, Halves even, Halves odd) {
    store(to + 2 * pair * kPanel, as_upper(even));
    store(to + (2 * pair + 1) * kPanel, as_upper(odd));
  }
  static inline void store_weights(float* scores, int64_t i, Floats a, Floats b, Floats* sum_a, Floats* sum_b) {
    *sum_a = add(*sum_a, a);
    *sum_b = add(*sum_b, b);
    store(scores + i, a);
    store(scores + i + 16, b);
  }
};

// Transposes 16 x 16 dwords in place.
inline void transpose(Ints rows[16]) {
  Ints t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = interleave_low32(rows[i], rows[i + 1]);
    t[i + 1] = interleave_high32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    rows[i] = interleave_low64(t[i], t[i + 2]);
    rows[i + 1] = interleave_high64(t[i], t[i + 2]);
    rows[i + 2] = interleave_low64(t[i + 1], t[i + 3]);
    rows[i + 3] = interleave_high64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = even_quarters(rows[i], rows[i + 4]);
    t[i + 4] = odd_quarters(rows[i], rows[i + 4]);
    t[i + 8] = even_quarters(rows[i + 8], rows[i + 12]);
    t[i + 12] = odd_quarters(rows[i + 8], rows[i + 12]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = even_quarters(t[i], t[i + 8]);
    rows[i + 8] = odd_quarters(t[i], t[i + 8]);
    rows[i + 4] = even_quarters(t[i + 4], t[i + 12]);
    rows[i + 12] = odd_quarters(t[i + 4], t[i + 12]);
  }
}

// Loads 16 dwords of each of 16 keys. Only `keys` keys and `pairs` dwords exist; the others are loaded as zeros.
inline void load_keys(const uint16_t* key, int64_t depth, int64_t keys, int64_t pairs, Ints rows[16]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    rows[i] = i < keys ? load_first(key + i * depth, pairs) : int_zeros();
  }
}

// Packs `keys` keys, padded with zeros to a multiple of 16 keys and to `padded_depth`.
template <class Product>
void pack_keys(const uint16_t* key, int64_t keys, int64_t depth, int64_t padded_depth, uint32_t* to) {
  const int64_t steps = padded_depth / Product::kStep, pairs = padded_depth / 2;
  for (int64_t k = 0; k < keys; k += 16) {
    uint32_t* panel = to + k / kPanel * steps * kPanel + k % kPanel;
    for (int64_t pair = 0; pair < pairs; pair += 16) {
      Ints rows[16];
      load_keys(key + k * depth + 2 * pair, depth, keys - k, depth / 2 - pair, rows);
      transpose(rows);
      for (int64_t i = 0; i < smaller(16, pairs - pair); ++i) {
        Product::store_keys(panel, pair + i, steps, rows[i]);
      }
    }
  }
}

// Packs the values of `keys` keys, padded with zeros to a multiple of 32 keys.
template <class Product>
void pack_values(const uint16_t* value, int64_t keys, int64_t depth, uint32_t* to) {
  const int64_t padded = round_up(keys, 32), steps = padded / Product::kStep;
  for (int64_t pair = 0; pair < padded / 2; ++pair) {
    const uint16_t* even = value + 2 * pair * depth;
    for (int64_t d = 0; d < depth; d += 16) {
      Product::store_values(to + d / kPanel * steps * kPanel + d % kPanel, pair,
                            load_halves_if(2 * pair < keys, even + d),
                            load_halves_if(2 * pair + 1 < keys, even + depth + d));
    }
  }
}

// Factor of the scores. It contains log2(e), because the softmax is computed with powers of 2.
inline float score_factor(int64_t depth) {
  return 1.44269504088896341f / root_of(static_cast<float>(depth));
}

// One block of a text's keys.
struct KeyBlock {
  int64_t keys;
  int64_t padded;  // keys rounded up to a multiple of 32; the number of scores per row
  bool first;
  bool last;
};

// Calls attend_rows(block, first query, number of queries) for each block of keys and each group of up to `rows`
// queries of the task.
template <class Product, class AttendRows>
void for_each_block(const AttentionTask& task, int64_t padded_depth, int64_t rows, const AttentionScratch& scratch,
                           AttendRows attend_rows) {
  for (int64_t from = 0; from < task.tokens; from += kKeys) {
    KeyBlock block{};
    block.keys = smaller(kKeys, task.tokens - from);
    block.padded = round_up(block.keys, 32);
    block.first = from == 0;
    block.last = from + kKeys >= task.tokens;
    const int64_t at = from * task.depth;
    pack_keys<Product>(task.key + at, block.keys, task.depth, padded_depth, scratch.keys);
    pack_values<Product>(task.value + at, block.keys, task.depth, scratch.values);
    for (int64_t query = task.first; query < task.last; query += rows) {
      attend_rows(block, query, smaller(rows, task.last - query));
    }
  }
}

// Turns the scores of `rows` queries into weights. Stores, per query, the factor for the context of earlier blocks to
// `rescale`.
template <class Product>
inline void weigh_rows(const KeyBlock& block, float factor, int64_t rows, float* scores, RunningSoftmax* running,
                              float rescale[kRows]) {
  float maxima[kRows];
  // Find all maxima first, so that the exponentials of a row do not wait for its maximum.
  for (int64_t row = 0; row < rows; ++row) {
    forget_scores(scores + row * kScoreStride, block.keys, block.padded);
    maxima[row] = largest_score(scores + row * kScoreStride, block.padded);
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* const at = scores + row * kScoreStride;
    rescale[row] = weigh_row<Product>(at, block.padded, maxima[row], factor, block.first, running + row);
  }
}

inline void merge_rows(const AttentionTask& task, const KeyBlock& block, const AttentionScratch& scratch,
                              int64_t query, int64_t rows, const float rescale[kRows]) {
  const int64_t padded = round_up(task.depth, kPanel);
  for (int64_t row = 0; row < rows; ++row) {
    merge_context(scratch.block + row * padded, task.depth, block.first, block.last, rescale[row],
                  scratch.running[query - task.first + row].sum, task.context + (query + row) * task.depth);
  }
}

}  // namespace
}  // namespace koe5
