// Attention that reads bf16 inputs and computes in fp32, for the level avx512_vnni.
#include "attention_registers.h"

namespace koe5 {

void attend_vnni(const AttentionTask& task) { attend_by_registers<Fp32Product>(task); }

}  // namespace koe5
