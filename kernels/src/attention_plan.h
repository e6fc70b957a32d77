// Splits attention over texts of different lengths into tasks: enough to occupy the threads, but few enough that
// starting them costs little.
#pragma once

#include <cstdint>
#include <vector>

namespace koe5 {

// The work of one task.
struct AttentionUnit {
  int64_t text;
  int64_t head;   // -1: all heads, and the task also quantizes the text's rows
  int64_t first;  // queries first..last-1
  int64_t last;
};

struct AttentionPlan {
  std::vector<AttentionUnit> units;  // largest first
  std::vector<int64_t> split_texts;  // texts whose rows are quantized after all units are done
};

// Plans attention for texts whose tokens are offsets[i]..offsets[i+1]-1 for text i. Results do not depend on the plan.
AttentionPlan plan_attention(const int32_t* offsets, int64_t texts, int64_t heads, int threads);

}  // namespace koe5
