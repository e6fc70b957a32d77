// Attention of some queries of one text in one head. One function an instruction set, each in its own file:
//   context = softmax(q k^T / sqrt(depth)) v, products from bf16 storage, sums in fp32.
// A query's result depends on its text's tokens alone: not on the other texts, the other queries of the call, or the
// number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace koe5 {

struct AttentionTask {
  const uint16_t* query;  // bf16[tokens, depth] of the text and the head
  const uint16_t* key;
  const uint16_t* value;
  int64_t tokens;  // of the text
  int64_t depth;   // of the head, a multiple of 16
  int64_t first;   // queries first..last-1, at most kQueriesPerTask
  int64_t last;
  float* context;  // [tokens, depth]
  void* scratch;  // attention_scratch_bytes(depth), 64-byte aligned, the calling thread's own
};

// Queries whose running maxima and sums a task keeps.
constexpr int64_t kQueriesPerTask = 512;

size_t attention_scratch_bytes(int64_t depth);

void attend_avx2(const AttentionTask& task);  // AVX2 and FMA: fp32
void attend_vnni(const AttentionTask& task);  // AVX512 without bf16 products: fp32
void attend_bf16(const AttentionTask& task);  // AVX512-BF16
void attend_amx(const AttentionTask& task);   // AMX-BF16

}  // namespace koe5
