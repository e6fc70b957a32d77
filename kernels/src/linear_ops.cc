// The linear operators (T tokens, H inputs or outputs, all tensors row-major):
//
// ProjectQkv(q u8[T, H], scale f32[T], weight_q s8[H, N], weight_k, weight_v, scale_q f32[N], scale_k, scale_v,
//            bias f32[3N]; heads) -> qkv bf16[3 heads, T, N / heads]: Q, K and V, each head contiguous
// ProjectAddNorm(a u8[T, K], a_scale f32[T], weight s8[K, H], weight_scale f32[H], x f32[T, H], skip f32[H],
//                bias f32[H], gain f32[H], shift f32[H]; epsilon) -> y f32[T, H], q u8[T, H], scale f32[T]
// ProjectGelu(a u8[T, H], a_scale f32[T], weight s8[H, F], weight_scale f32[F], bias f32[F], factors f32[64])
//             -> q u8[T, F], scale f32[T]
//
// 8-bit activations have the zero point 128. The 8-bit outputs of ProjectAddNorm and ProjectGelu are rotated
// (rotation.h); y is not. Before rotating, ProjectGelu multiplies each block of 64 values by `factors`. Weights and
// their scales are constants of the graph. When a session is created, it packs them, or maps them if an earlier session
// stored them packed. Then it releases the file pages of the original weights.
#include "linear.h"
#include "op.h"
#include "ops.h"

namespace koe5 {
namespace {

struct NamedWeight {
  const char* name;
  size_t weight, scale;  // input indices
};

void check_weight(const Tensor& weight, const char* name) {
  check_shape(weight, name, {-1, -1});
  if (PackedWeight::supported(weight.shape[0], weight.shape[1])) return;
  throw Error(std::string(name) + " must have a multiple of 4 rows (inputs), at most 65,536, and a multiple of 16 "
              "columns (outputs), but has the shape [" + std::to_string(weight.shape[0]) + ", " +
              std::to_string(weight.shape[1]) + "]. Use the padded graph");
}

// Packs weights side by side. All must have the same number of rows.
PackedWeight pack(const KernelInfo& info, std::initializer_list<NamedWeight> names) {
  std::vector<PackedWeight::Part> parts;
  int64_t k = -1;
  for (const NamedWeight& named : names) {
    const Tensor weight = info.constant_input(named.weight, named.name);
    const std::string scale_name = std::string("the scale of ") + named.name;
    const Tensor scale = info.constant_input(named.scale, scale_name.c_str());
    check_shape(weight, named.name, {k, -1});
    check_weight(weight, named.name);
    check_shape(scale, scale_name.c_str(), {weight.shape[1]});
    k = weight.shape[0];
    parts.push_back({weight.as<int8_t>(), scale.as<float>(), weight.shape[1]});
  }
  PackedWeight packed(cpu_level(), parts.data(), static_cast<int64_t>(parts.size()), k, info.packed_file());
  for (const PackedWeight::Part& part : parts) release_mapped_pages(part.weight, static_cast<size_t>(k * part.n));
  return packed;
}

// Packs the weight of an operator that rotates its outputs.
PackedWeight pack_rotated(const KernelInfo& info) {
  PackedWeight packed = pack(info, {{"weight", 2, 3}});
  check_rotated(packed.view().n, "weight must have a number of columns (outputs)");
  return packed;
}

Activations activations(const KernelContext& context, const PackedWeight& weight) {
  const Tensor a = context.input(0), scale = context.input(1);
  check_shape(a, "activations", {-1, weight.view().k});
  check_shape(scale, "the scale of the activations", {a.shape[0]});
  return {a.as<uint8_t>(), scale.as<float>(), a.shape[0]};
}

const float* row_input(const KernelContext& context, size_t index, const char* name, int64_t n) {
  const Tensor tensor = context.input(index);
  check_shape(tensor, name, {n});
  return tensor.as<float>();
}

QuantizedOutput quantized_output(const KernelContext& context, size_t index, int64_t rows, int64_t n) {
  return {context.output(index, {rows, n}).as<uint8_t>(), context.output(index + 1, {rows}).as<float>()};
}

class ProjectQkv final : public Kernel {
 public:
  explicit ProjectQkv(const KernelInfo& info)
      : weight_(pack(info, {{"weight_q", 2, 5}, {"weight_k", 3, 6}, {"weight_v", 4, 7}})),
        heads_(3 * info.attribute_int("heads")), depth_(heads_ > 0 ? weight_.view().n / heads_ : 0) {
    if (depth_ > 0 && depth_ % 16 == 0 && heads_ * depth_ == weight_.view().n) return;
    throw Error("heads must divide the weights' columns into multiples of 16, but is " + std::to_string(heads_ / 3) +
                " for " + std::to_string(weight_.view().n / 3) + " columns");
  }

  void compute(KernelContext& context) override {
    const Activations a = activations(context, weight_);
    const float* const bias = row_input(context, 8, "bias", weight_.view().n);
    uint16_t* const out = context.output(0, {heads_, a.rows, depth_}).as<uint16_t>();
    project(cpu_level(), context.pool(), a, weight_, bias, depth_, out);
  }

 private:
  const PackedWeight weight_;
  const int64_t heads_, depth_;  // heads_ is the number of heads of Q, K and V together
};

class ProjectAddNorm final : public Kernel {
 public:
  explicit ProjectAddNorm(const KernelInfo& info)
      : weight_(pack_rotated(info)), epsilon_(info.attribute_float("epsilon")) {}

  void compute(KernelContext& context) override {
    const Activations a = activations(context, weight_);
    const int64_t n = weight_.view().n;
    const Tensor x = context.input(4);
    check_shape(x, "x", {a.rows, n});
    const AddNorm with{x.as<float>(),
                       row_input(context, 5, "skip", n),
                       row_input(context, 6, "bias", n),
                       row_input(context, 7, "gain", n),
                       row_input(context, 8, "shift", n),
                       epsilon_};
    float* const y = context.output(0, {a.rows, n}).as<float>();
    project_add_norm(cpu_level(), context.pool(), a, weight_, with, y, quantized_output(context, 1, a.rows, n));
  }

 private:
  const PackedWeight weight_;
  const float epsilon_;
};

class ProjectGelu final : public Kernel {
 public:
  explicit ProjectGelu(const KernelInfo& info) : weight_(pack_rotated(info)) {}

  void compute(KernelContext& context) override {
    const Activations a = activations(context, weight_);
    const int64_t n = weight_.view().n;
    const float* const bias = row_input(context, 4, "bias", n);
    const float* const factors = row_input(context, 5, "factors", kRotated);
    project_gelu(cpu_level(), context.pool(), a, weight_, bias, factors, quantized_output(context, 0, a.rows, n));
  }

 private:
  const PackedWeight weight_;
};

template <class T>
std::unique_ptr<Kernel> create(const KernelInfo& info) {
  return std::make_unique<T>(info);
}

}  // namespace

const OpDefinition kProjectQkv = {
    "ProjectQkv",
    {Type::u8, Type::f32, Type::s8, Type::s8, Type::s8, Type::f32, Type::f32, Type::f32, Type::f32},
    {Type::bf16},
    create<ProjectQkv>,
};

const OpDefinition kProjectAddNorm = {
    "ProjectAddNorm",
    {Type::u8, Type::f32, Type::s8, Type::f32, Type::f32, Type::f32, Type::f32, Type::f32, Type::f32},
    {Type::f32, Type::u8, Type::f32},
    create<ProjectAddNorm>,
};

const OpDefinition kProjectGelu = {
    "ProjectGelu",
    {Type::u8, Type::f32, Type::s8, Type::f32, Type::f32, Type::f32},
    {Type::u8, Type::f32},
    create<ProjectGelu>,
};

}  // namespace koe5
