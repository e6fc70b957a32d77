// Attention by AVX512-BF16: vdpbf16ps adds the products of two bf16 pairs to an fp32 sum.
#include "attention_avx512.h"

namespace koe5 {
namespace {

struct Product : Bf16Product {
  static inline __m512 multiply_add(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  static inline void copy_query(const uint16_t* query, int64_t depth, uint32_t* to) {
    for (int64_t i = 0; i < depth; i += 16) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2), half);
    }
  }
};

}  // namespace

void attend_bf16(const AttentionTask& task) { attend_avx512<Product>(task); }

}  // namespace koe5
