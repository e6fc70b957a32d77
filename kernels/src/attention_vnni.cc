// Attention in fp32 from bf16 storage, for CPUs with AVX512 and without bf16 products.
#include "attention_avx512.h"

namespace koe5 {
namespace {

struct Product : Fp32Product {
  static inline __m512 multiply_add(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }

  static inline void copy_query(const uint16_t* query, int64_t depth, uint32_t* to) {
    for (int64_t i = 0; i < depth; i += 16) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query + i));
      _mm512_storeu_si512(to + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
  }
};

}  // namespace

size_t attention_scratch_bytes(int64_t depth) { return sizeof(uint32_t) * AttentionScratch::dwords(depth); }

void attend_vnni(const AttentionTask& task) { attend_avx512<Product>(task); }

}  // namespace koe5
