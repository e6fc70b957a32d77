// Attention of some queries of one text in one head. Each instruction set has its own function and file.
//   context = softmax(q k^T / sqrt(depth)) v, with bf16 operands and fp32 sums.
// A query's result depends only on the tokens of its text, not on the other texts, on the other queries of the call, or
// on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace koe5 {

struct AttentionTask {
  const uint16_t* query;  // bf16[tokens, depth] of the text and the head
  const uint16_t* key;
  const uint16_t* value;
  int64_t tokens;  // in the text
  int64_t depth;   // of the head; a multiple of 16
  int64_t first;   // queries first..last-1, at most kQueriesPerTask
  int64_t last;
  float* context;  // [tokens, depth]
  void* scratch;  // attention_scratch_bytes(depth), 64-byte aligned, owned by the calling thread
};

// Maximum number of queries per task. The task keeps a running maximum and sum for each.
constexpr int64_t kQueriesPerTask = 512;

size_t attention_scratch_bytes(int64_t depth);

void attend_avx2(const AttentionTask& task);  // AVX2 and FMA: fp32
void attend_vnni(const AttentionTask& task);  // AVX512 without bf16 dot-product instructions: fp32
void attend_bf16(const AttentionTask& task);  // AVX512-BF16
void attend_amx(const AttentionTask& task);   // AMX-BF16
void attend_neon(const AttentionTask& task);    // any 64-bit ARM: fp32
void attend_bfmmla(const AttentionTask& task);  // ARM with bf16

}  // namespace koe5
