#include "attention_plan.h"

#include <algorithm>

#include "attention.h"
#include "units.h"

namespace koe5 {
namespace {

// Tasks per thread. With four of similar size, a thread that finds no more tasks waits for about a quarter of a
// thread's work or less.
constexpr int64_t kTasksPerThread = 4;
// The number of queries per task is a multiple of this, unless kQueriesPerTask or the text's length limits it. 96 is
// divisible by 6, the rows of a register tile, and by 32, the rows of two AMX tiles.
constexpr int64_t kQueryStep = 96;
// Estimated time per query without its scores, in units of the time per score.
constexpr int64_t kTokenCost = 64;

// Estimated time of `queries` queries of a text with `tokens` tokens, in the same units.
int64_t cost(int64_t queries, int64_t tokens) { return queries * (tokens + kTokenCost); }

// Returns the number of queries per task that splits a text into about `tasks` tasks over all heads.
int64_t queries_per_task(int64_t tokens, int64_t heads, int64_t tasks) {
  const int64_t queries = ceil_div(tokens, ceil_div(tasks, heads));
  return std::min(round_up(queries, kQueryStep), kQueriesPerTask);
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
  for (int64_t text = 0; text < texts; ++text) total += cost(tokens_of(text), tokens_of(text));
  const int64_t tasks = threads > 1 ? kTasksPerThread * threads : 1;
  AttentionPlan plan;
  for (int64_t text = 0; text < texts; ++text) {
    const int64_t tokens = tokens_of(text);
    const int64_t share = tasks * cost(tokens, tokens) / std::max<int64_t>(total, 1);
    if (share > 1 || tokens > kQueriesPerTask) {
      split_text(text, tokens, heads, std::max<int64_t>(share, 1), &plan);
    } else {
      plan.units.push_back({text, -1, 0, tokens});
    }
  }
  const auto work = [&](const AttentionUnit& unit) {
    return cost(unit.last - unit.first, tokens_of(unit.text)) * (unit.head < 0 ? heads : 1);
  };
  std::sort(plan.units.begin(), plan.units.end(),
            [&](const AttentionUnit& a, const AttentionUnit& b) { return work(a) > work(b); });
  return plan;
}

}  // namespace koe5
