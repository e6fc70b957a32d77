// Attention for a range of queries of one text in one head, with one function per instruction set:
//   context = softmax(q k^T / sqrt(depth)) v, where q, k and v are bf16 and sums are fp32.
// The result for a query depends only on the tokens of its text, not on other texts, other queries or the threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace koe5 {

struct AttentionTask {
  const uint16_t* query;  // query, key and value: bf16[tokens, depth] of the text and head
  const uint16_t* key;
  const uint16_t* value;
  int64_t tokens;  // in the text
  int64_t depth;   // values per head; a multiple of 16
  int64_t first;   // computes queries first..last-1, at most kQueriesPerTask
  int64_t last;
  float* context;  // [tokens, depth]
  void* scratch;  // attention_scratch_bytes(depth), 64-byte aligned, owned by the calling thread
};

// Maximum number of queries per task. The scratch memory contains a running maximum and sum for each query.
constexpr int64_t kQueriesPerTask = 512;

size_t attention_scratch_bytes(int64_t depth);

void attend_avx2(const AttentionTask& task);    // fp32 products; requires AVX2 and FMA
void attend_vnni(const AttentionTask& task);    // fp32 products; requires AVX512
void attend_bf16(const AttentionTask& task);    // bf16 products; requires AVX512-BF16
void attend_amx(const AttentionTask& task);     // bf16 products; requires AMX-BF16
void attend_neon(const AttentionTask& task);    // fp32 products; any 64-bit ARM CPU
void attend_bfmmla(const AttentionTask& task);  // bf16 products; requires ARM's bf16 extension

}  // namespace koe5
