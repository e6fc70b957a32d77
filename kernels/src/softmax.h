// Softmax over a row of scores in blocks of keys, AVX512. Local to the file that includes it: see rows.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace koe5 {
namespace {

// 2^x for x <= 0, relative error below 1.6e-7; 0 for -infinity, NaN for NaN. A polynomial on the fraction of x (minimax
// of degree 5 for the relative error on [0, 1), found by the Remez exchange), scaled by 2^floor(x).
inline __m512 exp2_nonpositive(__m512 x) {
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0.0018775766948238015f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.00898933969438076f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.05582631751894951f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.24015361070632935f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.6931530833244324f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.9999999403953552f));
  return _mm512_scalef_ps(p, x);
}

// The same within 7.5e-5: for weights that are rounded to bf16, whose own step is 52 times that. Degree 3.
inline __m512 exp2_for_bf16(__m512 x) {
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0.07802452147006989f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.22606715559959412f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.6958335638046265f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.9999251961708069f));
  return _mm512_scalef_ps(p, x);
}

// Largest of n scores, n a multiple of 32. Of NaN it says nothing: a NaN score makes the sum below NaN.
inline float largest_score(const float* scores, int64_t n) {
  __m512 a = _mm512_loadu_ps(scores), b = _mm512_loadu_ps(scores + 16);
  for (int64_t i = 32; i < n; i += 32) {
    a = _mm512_max_ps(a, _mm512_loadu_ps(scores + i));
    b = _mm512_max_ps(b, _mm512_loadu_ps(scores + i + 16));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

// The state of one query between blocks of keys.
struct RunningSoftmax {
  float maximum;
  float sum;
};

// Turns n scores (a multiple of 32; -infinity where there is no key; `maximum` the largest) into weights
// 2^(factor * (score - maximum)), in place, as Product::store_weights packs and sums them. Returns what the sums of the
// blocks before must be multiplied by.
template <class Product>
inline float weigh_row(float* scores, int64_t n, float maximum, float factor, bool first_block,
                       RunningSoftmax* running) {
  float rescale = 0;
  if (!first_block) {
    maximum = running->maximum > maximum ? running->maximum : maximum;
    rescale = _mm512_cvtss_f32(exp2_nonpositive(_mm512_set1_ps(factor * (running->maximum - maximum))));
  }
  const __m512 by = _mm512_set1_ps(factor), shift = _mm512_set1_ps(-factor * maximum);
  __m512 sum_a = _mm512_setzero_ps(), sum_b = sum_a;
  for (int64_t i = 0; i < n; i += 32) {
    const __m512 a = Product::exp2(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), by, shift));
    const __m512 b = Product::exp2(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i + 16), by, shift));
    Product::store_weights(scores, i, a, b, &sum_a, &sum_b);
  }
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(sum_a, sum_b));
  running->maximum = maximum;
  running->sum = first_block ? sum : running->sum * rescale + sum;
  return rescale;
}

// No key has a weight beyond `keys`.
inline void forget_scores(float* scores, int64_t keys, int64_t padded) {
  for (int64_t i = keys & ~int64_t{15}; i < padded; i += 16) {
    const __mmask16 absent = i >= keys ? 0xffff : static_cast<__mmask16>(0xffffu << (keys - i));
    _mm512_mask_storeu_ps(scores + i, absent, _mm512_set1_ps(-__builtin_inff()));
  }
}

// context = context * rescale + block, or only block if it is the first; then divided by the sum if it is the last.
inline void merge_context(const float* block, int64_t width, bool first_block, bool last_block, float rescale,
                                 float sum, float* context) {
  const __m512 by = _mm512_set1_ps(rescale), inverse = _mm512_set1_ps(1.0f / sum);
  for (int64_t i = 0; i < width; i += 16) {
    __m512 value = _mm512_loadu_ps(block + i);
    if (!first_block) value = _mm512_fmadd_ps(_mm512_loadu_ps(context + i), by, value);
    if (last_block) value = _mm512_mul_ps(value, inverse);
    _mm512_storeu_ps(context + i, value);
  }
}

}  // namespace
}  // namespace koe5
