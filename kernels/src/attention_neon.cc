// Attention that reads bf16 inputs and computes in fp32, for the level neon_dotprod.
#include "attention_registers.h"

namespace koe5 {

size_t attention_scratch_bytes(int64_t depth) { return sizeof(uint32_t) * AttentionScratch::dwords(depth); }

void attend_neon(const AttentionTask& task) { attend_by_registers<Fp32Product>(task); }

}  // namespace koe5
