// Attention in fp32 from bf16 storage, for CPUs with AVX512 and without bf16 products.
#include "attention_registers.h"

namespace koe5 {

void attend_vnni(const AttentionTask& task) { attend_by_registers<Fp32Product>(task); }

}  // namespace koe5
