// Attention in vector registers: multiplies up to six queries by 64 keys at a time, then their weights by 64 columns of
// the values. On AVX512, 24 sums, 4 vectors of keys or values and one broadcast query or weight use 29 of the 32
// registers. On AVX2 and NEON, products have 16 columns instead of 64.
#pragma once

#include "attention_blocks.h"

namespace koe5 {
namespace {

constexpr int64_t kQueryRows = 6;

// Up to four vectors of 16 columns. Members instead of an array, because GCC keeps arrays of sums in memory.
struct Vectors {
  Floats a, b, c, d;
};

template <int N>
KOE5_INLINE Vectors load_step(const uint32_t* from) {
  const float* const at = reinterpret_cast<const float*>(from);
  Vectors v;
  v.a = v.b = v.c = v.d = load(at);
  if constexpr (N > 1) v.b = load(at + 16);
  if constexpr (N > 2) v.c = load(at + 32);
  if constexpr (N > 3) v.d = load(at + 48);
  return v;
}

template <class Product, int N>
KOE5_INLINE void add_step(Vectors& sums, const uint32_t* by, const Vectors& columns) {
  const Floats broadcast = floats_of_bits(spread_int(static_cast<int>(*by)));
  sums.a = Product::add_product(sums.a, broadcast, columns.a);
  if constexpr (N > 1) sums.b = Product::add_product(sums.b, broadcast, columns.b);
  if constexpr (N > 2) sums.c = Product::add_product(sums.c, broadcast, columns.c);
  if constexpr (N > 3) sums.d = Product::add_product(sums.d, broadcast, columns.d);
}

template <int N>
KOE5_INLINE void store_sums(float* to, const Vectors& sums) {
  store(to, sums.a);
  if constexpr (N > 1) store(to + 16, sums.b);
  if constexpr (N > 2) store(to + 32, sums.c);
  if constexpr (N > 3) store(to + 48, sums.d);
}

// out[R][16 N] = left[R][steps] x packed[steps][64], for the first 16 N columns of a panel.
template <class Product, int R, int N>
void multiply_tile(const uint32_t* left, int64_t left_stride, const uint32_t* packed, int64_t steps, float* out,
                     int64_t out_stride) {
  const Floats zero = zeros();
  Vectors r0{zero, zero, zero, zero}, r1 = r0, r2 = r0, r3 = r0, r4 = r0, r5 = r0;
  for (int64_t step = 0; step < steps; ++step) {
    const Vectors columns = load_step<N>(packed + step * kPanel);
    add_step<Product, N>(r0, left + step, columns);
    if constexpr (R > 1) add_step<Product, N>(r1, left + left_stride + step, columns);
    if constexpr (R > 2) add_step<Product, N>(r2, left + 2 * left_stride + step, columns);
    if constexpr (R > 3) add_step<Product, N>(r3, left + 3 * left_stride + step, columns);
    if constexpr (R > 4) add_step<Product, N>(r4, left + 4 * left_stride + step, columns);
    if constexpr (R > 5) add_step<Product, N>(r5, left + 5 * left_stride + step, columns);
  }
  store_sums<N>(out, r0);
  if constexpr (R > 1) store_sums<N>(out + out_stride, r1);
  if constexpr (R > 2) store_sums<N>(out + 2 * out_stride, r2);
  if constexpr (R > 3) store_sums<N>(out + 3 * out_stride, r3);
  if constexpr (R > 4) store_sums<N>(out + 4 * out_stride, r4);
  if constexpr (R > 5) store_sums<N>(out + 5 * out_stride, r5);
}

constexpr int at_most(int vectors) { return vectors < kMostVectors ? vectors : kMostVectors; }

using MultiplyTile = void (*)(const uint32_t*, int64_t, const uint32_t*, int64_t, float*, int64_t);

template <class Product, int N>
MultiplyTile multiply_of(int64_t rows) {
  constexpr MultiplyTile kByRows[] = {multiply_tile<Product, 1, N>, multiply_tile<Product, 2, N>,
                                      multiply_tile<Product, 3, N>, multiply_tile<Product, 4, N>,
                                      multiply_tile<Product, 5, N>, multiply_tile<Product, 6, N>};
  return kByRows[rows - 1];
}

// out[rows][columns] = left x packed, where `packed` consists of panels of 64 columns.
template <class Product>
void multiply_panels(const uint32_t* left, int64_t left_stride, const uint32_t* packed, int64_t steps,
                            int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  const MultiplyTile by_vectors[] = {multiply_of<Product, 1>(rows), multiply_of<Product, at_most(2)>(rows),
                                     multiply_of<Product, at_most(3)>(rows), multiply_of<Product, at_most(4)>(rows)};
  for (int64_t column = 0; column < columns; column += 16 * kMostVectors) {
    const int64_t vectors = smaller(kMostVectors, (columns - column + 15) / 16);
    const uint32_t* const at = packed + column / kPanel * kPanel * steps + column % kPanel;
    by_vectors[vectors - 1](left, left_stride, at, steps, out + column, out_stride);
  }
}

template <class Product>
void attend_by_registers(const AttentionTask& task) {
  const AttentionScratch scratch(task.scratch, task.depth);
  const float factor = score_factor(task.depth);
  const int64_t depth_steps = task.depth / Product::kStep;
  uint32_t* weights = reinterpret_cast<uint32_t*>(scratch.scores);
  for_each_block<Product>(task, task.depth, kQueryRows, scratch,
                          [&](const KeyBlock& block, int64_t query, int64_t rows) {
    float rescale[kRows];
    for (int64_t row = 0; row < rows; ++row) {
      Product::copy_query(task.query + (query + row) * task.depth, task.depth, scratch.queries + row * depth_steps);
    }
    multiply_panels<Product>(scratch.queries, depth_steps, scratch.keys, depth_steps, rows, block.keys, scratch.scores,
                             kScoreStride);
    weigh_rows<Product>(block, factor, rows, scratch.scores, scratch.running + (query - task.first), rescale);
    const int64_t key_steps = block.padded / Product::kStep;
    multiply_panels<Product>(weights, kScoreStride, scratch.values, key_steps, rows, task.depth, scratch.block,
                             round_up(task.depth, kPanel));
    merge_rows(task, block, scratch, query, rows, rescale);
  });
}

}  // namespace
}  // namespace koe5
