// PoolMean(y f32[T, H], offsets i32[n+1]) -> f32[n, H]: the mean of each text's rows, summed in fp32 in row order.
#include <algorithm>

#include "op.h"
#include "ops.h"
#include "row_kernels.h"
#include "units.h"

namespace koe5 {
namespace {

constexpr int64_t kColumnsPerTask = 256;

class PoolMean final : public Kernel {
 public:
  void compute(KernelContext& context) override {
    const Tensor y = context.input(0), offsets = context.input(1);
    check_shape(y, "y", {-1, -1});
    const int64_t width = y.shape[1], texts = check_offsets(offsets, y.shape[0]);
    if (width == 0 || width % 16 != 0) {
      throw Error("y must have a width that is a multiple of 16, but has " + std::to_string(width));
    }
    const Tensor mean = context.output(0, {texts, width});
    const int64_t parts = ceil_div(width, kColumnsPerTask);
    context.pool().parallel_for(texts * parts, [&](int64_t task) {
      const int64_t text = task / parts, column = task % parts * kColumnsPerTask;
      const int64_t start = offsets.as<int32_t>()[text], rows = offsets.as<int32_t>()[text + 1] - start;
      row_kernels(cpu_level()).mean(y.as<float>() + start * width + column, rows, width,
                                    std::min(kColumnsPerTask, width - column), mean.as<float>() + text * width + column);
    });
  }
};

}  // namespace

const OpDefinition kPoolMean = {
    "PoolMean",
    {Type::f32, Type::i32},
    {Type::f32},
    [](const KernelInfo&) -> std::unique_ptr<Kernel> { return std::make_unique<PoolMean>(); },
};

}  // namespace koe5
