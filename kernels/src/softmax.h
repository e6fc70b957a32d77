// Softmax over a row of scores in blocks of keys. Local to the file that includes it; see sixteen.h.
#pragma once

#include <cstdint>

#include "sixteen.h"

namespace koe5 {
namespace {

// 2^x for x <= 0 with a relative error below 1.6e-7; 0 for -infinity, NaN for NaN. A polynomial in the fraction of x
// (minimax of degree 5 for the relative error on [0, 1), found by the Remez exchange), scaled by 2^floor(x).
inline Floats exp2_nonpositive(Floats x) {
  x = exponent_in_range(x);
  const Floats fraction = fraction_of(x);
  Floats p = spread(0.0018775766948238015f);
  p = multiply_add(p, fraction, spread(0.00898933969438076f));
  p = multiply_add(p, fraction, spread(0.05582631751894951f));
  p = multiply_add(p, fraction, spread(0.24015361070632935f));
  p = multiply_add(p, fraction, spread(0.6931530833244324f));
  p = multiply_add(p, fraction, spread(0.9999999403953552f));
  return scale_by_floor(p, x);
}

// The same by a polynomial of degree 3, with a relative error below 7.5e-5, for weights that are then rounded to bf16,
// whose rounding error is 52 times as large.
inline Floats exp2_for_bf16(Floats x) {
  x = exponent_in_range(x);
  const Floats fraction = fraction_of(x);
  Floats p = spread(0.07802452147006989f);
  p = multiply_add(p, fraction, spread(0.22606715559959412f));
  p = multiply_add(p, fraction, spread(0.6958335638046265f));
  p = multiply_add(p, fraction, spread(0.9999251961708069f));
  return scale_by_floor(p, x);
}

// Returns the largest of n scores; n must be a multiple of 32. NaN scores are skipped here, but they make the softmax
// sum NaN later in this file.
inline float largest_score(const float* scores, int64_t n) {
  Floats a = load(scores), b = load(scores + 16);
  for (int64_t i = 32; i < n; i += 32) {
    a = larger_of(a, load(scores + i));
    b = larger_of(b, load(scores + i + 16));
  }
  return largest_of(larger_of(a, b));
}

// The state of one query between blocks of keys.
struct RunningSoftmax {
  float maximum;
  float sum;
};

// Turns n scores (a multiple of 32; -infinity beyond the last key; `maximum` is the largest) into weights
// 2^(factor * (score - maximum)), in place. Product::store_weights packs and sums them. Returns the factor for the sums
// of earlier blocks.
template <class Product>
inline float weigh_row(float* scores, int64_t n, float maximum, float factor, bool first_block,
                       RunningSoftmax* running) {
  float rescale = 0;
  if (!first_block) {
    maximum = running->maximum > maximum ? running->maximum : maximum;
    rescale = first_of(exp2_nonpositive(spread(factor * (running->maximum - maximum))));
  }
  const Floats by = spread(factor), shift = spread(-factor * maximum);
  Floats sum_a = zeros(), sum_b = sum_a;
  for (int64_t i = 0; i < n; i += 32) {
    const Floats a = Product::exp2(multiply_add(load(scores + i), by, shift));
    const Floats b = Product::exp2(multiply_add(load(scores + i + 16), by, shift));
    Product::store_weights(scores, i, a, b, &sum_a, &sum_b);
  }
  const float sum = sum_of(add(sum_a, sum_b));
  running->maximum = maximum;
  running->sum = first_block ? sum : running->sum * rescale + sum;
  return rescale;
}

// Sets the scores beyond the last key to -infinity.
inline void forget_scores(float* scores, int64_t keys, int64_t padded) {
  for (int64_t i = keys & ~int64_t{15}; i < padded; i += 16) {
    store_beyond(scores + i, keys - i, spread(-__builtin_inff()));
  }
}

// context = context * rescale + block, or only block if it is the first. Divided by the sum if it is the last.
inline void merge_context(const float* block, int64_t width, bool first_block, bool last_block, float rescale,
                                 float sum, float* context) {
  const Floats by = spread(rescale), inverse = spread(1.0f / sum);
  for (int64_t i = 0; i < width; i += 16) {
    Floats value = load(block + i);
    if (!first_block) value = multiply_add(load(context + i), by, value);
    if (last_block) value = multiply(value, inverse);
    store(context + i, value);
  }
}

}  // namespace
}  // namespace koe5
