// NormQuantize(x f32[T, H], gain f32[H], shift f32[H]; epsilon) -> y f32[T, H], q u8[T, H], scale f32[T]
// y is the layer norm of x; q is y, rotated and quantized to 8 bits. The first koe5 operator of a packed graph.
#include <algorithm>

#include "op.h"
#include "ops.h"
#include "row_kernels.h"
#include "units.h"

namespace koe5 {
namespace {

// Rows per task: few enough to spread short batches over the threads, enough to outweigh the dispatch of a task.
constexpr int64_t kRowsPerTask = 8;

class NormQuantize final : public Kernel {
 public:
  explicit NormQuantize(const KernelInfo& info) : epsilon_(info.attribute_float("epsilon")) {}

  void compute(KernelContext& context) override {
    const Tensor x = context.input(0), gain = context.input(1), shift = context.input(2);
    check_shape(x, "x", {-1, -1});
    const int64_t tokens = x.shape[0], width = x.shape[1];
    check_rotated(width, "x must have a width");
    check_shape(gain, "gain", {width});
    check_shape(shift, "shift", {width});
    const Tensor y = context.output(0, {tokens, width});
    const Tensor q = context.output(1, {tokens, width}), scale = context.output(2, {tokens});
    const int64_t tasks = ceil_div(tokens, kRowsPerTask);
    const Scratch rotated = context.scratch(sizeof(float) * tasks * width);
    context.pool().parallel_for(tasks, [&](int64_t task) {
      const int64_t first = task * kRowsPerTask, at = first * width;
      const int64_t rows = std::min(kRowsPerTask, tokens - first);
      row_kernels(cpu_level()).norm_quantize(x.as<float>() + at, gain.as<float>(), shift.as<float>(), epsilon_, rows,
                                             width, rotated.as<float>() + task * width, y.as<float>() + at,
                                             {q.as<uint8_t>() + at, scale.as<float>() + first});
    });
  }

 private:
  const float epsilon_;
};

}  // namespace

const OpDefinition kNormQuantize = {
    "NormQuantize",
    {Type::f32, Type::f32, Type::f32},
    {Type::f32, Type::u8, Type::f32},
    [](const KernelInfo& info) -> std::unique_ptr<Kernel> { return std::make_unique<NormQuantize>(info); },
};

}  // namespace koe5
