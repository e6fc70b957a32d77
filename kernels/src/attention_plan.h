// How attention over ragged texts is split into tasks: enough for every thread, few enough to be worth their dispatch.
#pragma once

#include <cstdint>
#include <vector>

namespace koe5 {

struct AttentionUnit {
  int64_t text;
  int64_t head;   // -1: all heads, and the text's rows are quantized by the same task
  int64_t first;  // queries
  int64_t last;
};

struct AttentionPlan {
  std::vector<AttentionUnit> units;  // the most work first
  std::vector<int64_t> split_texts;  // texts whose rows are quantized once all units are done
};

// Plans attention for texts i of tokens offsets[i]..offsets[i+1]-1. No result depends on the plan.
AttentionPlan plan_attention(const int32_t* offsets, int64_t texts, int64_t heads, int threads);

}  // namespace koe5
