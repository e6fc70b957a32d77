// Attention that reads bf16 inputs and computes in fp32, for the levels avx2 and avx_vnni.
#include "attention_registers.h"

namespace koe5 {

// Defined here because every supported x86-64 CPU has AVX2.
size_t attention_scratch_bytes(int64_t depth) { return sizeof(uint32_t) * AttentionScratch::dwords(depth); }

void attend_avx2(const AttentionTask& task) { attend_by_registers<Fp32Product>(task); }

}  // namespace koe5
