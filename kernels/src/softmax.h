// Softmax over the scores of a query, one block of keys at a time. Local to the file that includes it; see sixteen.h.
#pragma once

#include <cstdint>

#include "sixteen.h"

namespace koe5 {
namespace {

// Returns 2^x for x <= 0 with a relative error below 1.6e-7, 0 for -infinity, and NaN for NaN. Scales a polynomial in
// the fraction of x by 2^floor(x). The polynomial has degree 5 and the least maximum relative error on [0, 1) (Remez
// exchange).
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

// Like exp2_nonpositive, but with a polynomial of degree 3 and a relative error below 7.5e-5. For weights that are then
// rounded to bf16, which has a 52 times larger rounding error.
inline Floats exp2_for_bf16(Floats x) {
  x = exponent_in_range(x);
  const Floats fraction = fraction_of(x);
  Floats p = spread(0.07802452147006989f);
  p = multiply_add(p, fraction, spread(0.22606715559959412f));
  p = multiply_add(p, fraction, spread(0.6958335638046265f));
  p = multiply_add(p, fraction, spread(0.9999251961708069f));
  return scale_by_floor(p, x);
}

// Returns the largest of n scores, where n is a multiple of 32. A NaN score may be ignored here, because it makes the
// sum in weigh_row NaN.
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

// Replaces n scores by the weights 2^(factor * (score - running maximum)), which Product::store_weights packs and sums.
// n is a multiple of 32, `maximum` is the largest of the n scores, and scores beyond the last key are -infinity.
// Returns the factor for the sum and the context of earlier blocks.
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

// context = context * rescale + block. The first block replaces the context; the last one also divides it by `sum`.
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
