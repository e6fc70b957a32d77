#include "attention_plan.h"

#include <algorithm>

#include "attention.h"

namespace koe5 {
namespace {

// Tasks for each thread, so that the last to finish keeps the others waiting for a quarter of its share at most.
constexpr int64_t kTasksPerThread = 4;
// Queries of a task are a multiple of what both six rows and two tiles of 16 divide.
constexpr int64_t kQueryStep = 96;

// Time of a text's attention, in units of one score: scores, and what each token costs whatever their number.
int64_t cost(int64_t tokens) { return tokens * (tokens + 64); }

// Queries of each task when a text is to be at least `tasks` tasks over all heads.
int64_t queries_per_task(int64_t tokens, int64_t heads, int64_t tasks) {
  const int64_t ranges = (tasks + heads - 1) / heads;
  const int64_t queries = (tokens + ranges - 1) / ranges;
  return std::min((queries + kQueryStep - 1) / kQueryStep * kQueryStep, kQueriesPerTask);
}

void split_text(int64_t text, int64_t tokens, int64_t heads, int64_t tasks, AttentionPlan* plan) {
  const int64_t step = queries_per_task(tokens, heads, tasks);
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t first = 0; first < tokens; first += step) {
      plan->units.push_back({text, head, first, std::min(tokens, first + step)});
    }
  }
  plan->split_texts.push_back(text);
}

}  // namespace

AttentionPlan plan_attention(const int32_t* offsets, int64_t texts, int64_t heads, int threads) {
  const auto tokens_of = [&](int64_t text) { return static_cast<int64_t>(offsets[text + 1]) - offsets[text]; };
  int64_t total = 0;
  for (int64_t text = 0; text < texts; ++text) total += cost(tokens_of(text));
  const int64_t tasks = threads > 1 ? kTasksPerThread * threads : 1;
  AttentionPlan plan;
  for (int64_t text = 0; text < texts; ++text) {
    const int64_t tokens = tokens_of(text);
    const int64_t share = tasks * cost(tokens) / std::max<int64_t>(total, 1);
    if (share > 1 || tokens > kQueriesPerTask) {
      split_text(text, tokens, heads, std::max<int64_t>(share, 1), &plan);
    } else {
      plan.units.push_back({text, -1, 0, tokens});
    }
  }
  const auto work = [&](const AttentionUnit& unit) {
    return (unit.last - unit.first) * (tokens_of(unit.text) + 64) * (unit.head < 0 ? heads : 1);
  };
  std::sort(plan.units.begin(), plan.units.end(),
            [&](const AttentionUnit& a, const AttentionUnit& b) { return work(a) > work(b); });
  return plan;
}

}  // namespace koe5
