// Attention by AVX512-BF16, whose VDPBF16PS adds two products of bf16 values to each fp32 sum.
#include "attention_registers.h"

namespace koe5 {
namespace {

struct Product : Bf16Product {
  static inline Floats add_product(Floats sum, Floats a, Floats b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  static inline void copy_query(const uint16_t* query, int64_t depth, uint32_t* to) {
    for (int64_t i = 0; i < depth; i += 16) {
      store_halves(reinterpret_cast<uint16_t*>(to + i / 2), load_halves(query + i));
    }
  }
};

}  // namespace

void attend_bf16(const AttentionTask& task) { attend_by_registers<Product>(task); }

}  // namespace koe5
