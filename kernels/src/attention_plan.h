// Splits attention over ragged texts into tasks: enough to occupy every thread, but few enough to keep dispatch cheap.
#pragma once

#include <cstdint>
#include <vector>

namespace koe5 {

struct AttentionUnit {
  int64_t text;
  int64_t head;   // -1: all heads, and the same task quantizes the text's rows
  int64_t first;  // queries first..last-1
  int64_t last;
};

struct AttentionPlan {
  std::vector<AttentionUnit> units;  // largest first
  std::vector<int64_t> split_texts;  // texts whose rows are quantized after all units are done
};

// Plans attention for texts i with tokens offsets[i]..offsets[i+1]-1. Results do not depend on the plan.
AttentionPlan plan_attention(const int32_t* offsets, int64_t texts, int64_t heads, int threads);

}  // namespace koe5
