// RaggedAttention(qkv bf16[3 heads, T, H / heads], offsets i32[n+1]) -> q u8[T, H], scale f32[T]
// Softmax attention of each token over its own text in all heads, with the result in 8 bits and one scale per token.
#include <algorithm>
#include <atomic>
#include <memory>

#include "attention.h"
#include "attention_plan.h"
#include "cpu.h"
#include "op.h"
#include "ops.h"
#include "row_kernels.h"
#include "thread_scratch.h"

namespace koe5 {
namespace {

constexpr int64_t kRowsPerTask = 8;
constexpr int64_t kMaxDepth = 256;

using Attend = void (*)(const AttentionTask&);

Attend attend_at(Level level) {
#if defined(__aarch64__)
  return level == Level::neon_i8mm ? attend_bfmmla : attend_neon;
#else
  if (level == Level::amx) return attend_amx;
  if (level == Level::avx512_bf16) return attend_bf16;
  return level == Level::avx512_vnni ? attend_vnni : attend_avx2;
#endif
}

thread_local ThreadScratch thread_scratch;

// Tensors and parameters of one call of the operator.
struct Call {
  const uint16_t* qkv;
  const int32_t* offsets;
  int64_t tokens;
  int64_t heads;
  int64_t depth;
  Attend attend;
  float* context;  // [heads, tokens, depth]
  uint8_t* q;
  float* scale;

  int64_t width() const { return heads * depth; }

  void attend_head(const AttentionUnit& unit, int64_t head, void* scratch) const {
    const int64_t start = offsets[unit.text], of_all_heads = tokens * width();
    AttentionTask task{};
    task.query = qkv + (head * tokens + start) * depth;
    task.key = task.query + of_all_heads;
    task.value = task.key + of_all_heads;
    task.tokens = offsets[unit.text + 1] - start;
    task.depth = depth;
    task.first = unit.first;
    task.last = unit.last;
    task.context = context + (head * tokens + start) * depth;
    task.scratch = scratch;
    attend(task);
  }

  void quantize(int64_t first, int64_t rows) const {
    const auto quantize_heads = row_kernels(cpu_level()).quantize_heads;
    for (int64_t row = first; row < first + rows; ++row) {
      scale[row] = quantize_heads(context + row * depth, heads, tokens, depth, q + row * width());
    }
  }

  // Computes a unit. Returns false if scratch memory cannot be allocated.
  bool run(const AttentionUnit& unit) const {
    void* scratch = thread_scratch.at_least(attention_scratch_bytes(depth));
    if (scratch == nullptr) return false;
    if (unit.head >= 0) {
      attend_head(unit, unit.head, scratch);
      return true;
    }
    for (int64_t head = 0; head < heads; ++head) attend_head(unit, head, scratch);
    quantize(offsets[unit.text], unit.last - unit.first);
    return true;
  }
};

// Quantizes the rows of texts that were split over several units. They are complete only after all units are done.
void quantize_split(const Call& call, const AttentionPlan& plan, Pool* pool) {
  struct Rows {
    int64_t first, count;
  };
  std::vector<Rows> tasks;
  for (const int64_t text : plan.split_texts) {
    const int64_t end = call.offsets[text + 1];
    for (int64_t row = call.offsets[text]; row < end; row += kRowsPerTask) {
      tasks.push_back({row, std::min(kRowsPerTask, end - row)});
    }
  }
  if (tasks.empty()) return;
  pool->parallel_for(static_cast<int64_t>(tasks.size()),
                     [&](int64_t i) { call.quantize(tasks[i].first, tasks[i].count); });
}

class RaggedAttention final : public Kernel {
 public:
  explicit RaggedAttention(const KernelInfo&) : attend_(attend_at(cpu_level())) {}

  void compute(KernelContext& context) override {
    const Tensor qkv = context.input(0), offsets = context.input(1);
    check_shape(qkv, "qkv", {-1, -1, -1});
    const int64_t heads = qkv.shape[0] / 3, tokens = qkv.shape[1], depth = qkv.shape[2], width = heads * depth;
    check_heads(qkv.shape[0], depth);
    const int64_t texts = check_offsets(offsets, tokens);
    const Tensor q = context.output(0, {tokens, width}), scale = context.output(1, {tokens});
    if (texts == 0) return;
    const Scratch values = context.scratch(sizeof(float) * tokens * width);
    const Call call{qkv.as<uint16_t>(), offsets.as<int32_t>(), tokens,          heads,         depth, attend_,
                    values.as<float>(), q.as<uint8_t>(),       scale.as<float>()};
    Pool& pool = context.pool();
    const AttentionPlan plan = plan_attention(call.offsets, texts, heads, pool.threads());
    std::atomic<bool> complete{true};  // tasks must not throw
    pool.parallel_for(static_cast<int64_t>(plan.units.size()), [&](int64_t i) {
      if (!call.run(plan.units[i])) complete = false;
    });
    if (!complete) throw Error("cannot allocate a thread's scratch memory for blocks of keys");
    quantize_split(call, plan, &pool);
  }

 private:
  static void check_heads(int64_t parts, int64_t depth) {
    if (parts >= 3 && parts % 3 == 0 && depth >= 16 && depth % 16 == 0 && depth <= kMaxDepth) return;
    throw Error("qkv must have 3 x heads parts and a depth that is a multiple of 16 up to " +
                std::to_string(kMaxDepth) + ", but has " + std::to_string(parts) + " parts and a depth of " +
                std::to_string(depth));
  }

  const Attend attend_;
};

}  // namespace

const OpDefinition kRaggedAttention = {
    "RaggedAttention",
    {Type::bf16, Type::i32},
    {Type::u8, Type::f32},
    [](const KernelInfo& info) -> std::unique_ptr<Kernel> { return std::make_unique<RaggedAttention>(info); },
};

}  // namespace koe5
