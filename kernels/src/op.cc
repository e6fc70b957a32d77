#include "op.h"

#include <memory>
#include <utility>

#include "linear_kernels.h"
#include "packed_file.h"

namespace koe5 {
namespace {

// Throws the message of `status`, unless it is null, which means success. Releases the status.
void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string text = abi::call<abi::GetErrorMessage>(api, static_cast<const OrtStatus*>(status));
  abi::call<abi::ReleaseStatus>(api, status);
  throw Error(text);
}

std::string shape_text(const int64_t* dims, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) {
    text += (i == 0 ? "" : ", ") + (dims[i] < 0 ? std::string("any") : std::to_string(dims[i]));
  }
  return text + "]";
}

std::vector<int64_t> shape_of(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, abi::call<abi::GetTensorTypeAndShape>(api, value, &info));
  const auto release = abi::function<abi::ReleaseTensorTypeAndShapeInfo>(api);
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> owner(info, release);
  size_t rank = 0;
  check(api, abi::call<abi::GetDimensionsCount>(api, info, &rank));
  std::vector<int64_t> shape(rank);
  check(api, abi::call<abi::GetDimensions>(api, info, shape.data(), rank));
  return shape;
}

Tensor tensor_of(const OrtApi* api, const OrtValue* value) {
  Tensor tensor;
  tensor.shape = shape_of(api, value);
  check(api, abi::call<abi::GetTensorMutableData>(api, const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

}  // namespace

void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> expected) {
  bool same = tensor.shape.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) {
    same = expected.begin()[i] < 0 || expected.begin()[i] == tensor.shape[i];
  }
  if (same) return;
  throw Error(std::string(name) + " must have the shape " + shape_text(expected.begin(), expected.size()) +
              " but has " + shape_text(tensor.shape.data(), tensor.shape.size()));
}

void check_rotated(int64_t width, const char* what) {
  if (width > 0 && width % kRotated == 0) return;
  throw Error(std::string(what) + " that is a multiple of " + std::to_string(kRotated) + ", but has " +
              std::to_string(width));
}

int64_t check_offsets(const Tensor& offsets, int64_t tokens) {
  check_shape(offsets, "offsets", {-1});
  const int64_t n = offsets.shape[0] - 1;
  const int32_t* at = offsets.as<int32_t>();
  bool rising = n >= 0 && at[0] == 0 && at[n] == tokens;
  for (int64_t i = 0; rising && i < n; ++i) rising = at[i] < at[i + 1];
  if (rising) return n;
  throw Error("offsets must rise from 0 to the number of tokens, " + std::to_string(tokens) +
              ", with at least one token per text");
}

float KernelInfo::attribute_float(const char* name) const {
  float value = 0;
  check(api_, abi::call<abi::KernelInfoGetAttributeFloat>(api_, info_, name, &value));
  return value;
}

int64_t KernelInfo::attribute_int(const char* name) const {
  int64_t value = 0;
  check(api_, abi::call<abi::KernelInfoGetAttributeInt>(api_, info_, name, &value));
  return value;
}

std::string KernelInfo::node_name() const {
  size_t size = 0;
  check(api_, abi::call<abi::KernelInfoGetNodeName>(api_, info_, static_cast<char*>(nullptr), &size));
  std::string name(size, '\0');
  check(api_, abi::call<abi::KernelInfoGetNodeName>(api_, info_, name.data(), &size));
  return name.c_str();  // without the terminating zero
}

std::string KernelInfo::packed_file() const { return packed_file_name(packed_folder_, node_name()); }

Tensor KernelInfo::constant_input(size_t index, const char* name) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, abi::call<abi::KernelInfoGetConstantInput>(api_, info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) throw Error(std::string(name) + " must be a constant of the graph");
  return tensor_of(api_, value);
}

Scratch::Scratch(const OrtApi* api, Allocator allocator, size_t bytes) : api_(api), allocator_(std::move(allocator)) {
  check(api_, abi::call<abi::AllocatorAlloc>(api_, allocator_.get(), bytes + 63, &memory_));
}

Scratch::~Scratch() {
  OrtStatus* status = abi::call<abi::AllocatorFree>(api_, allocator_.get(), memory_);
  if (status != nullptr) abi::call<abi::ReleaseStatus>(api_, status);
}

void SessionPool::run(int64_t n, void (*task)(void*, int64_t), void* context) {
  if (n < 1) return;
  if (n == 1) return task(context, 0);
  struct Call {
    void (*task)(void*, int64_t);
    void* context;
  } call{task, context};
  const auto one = [](void* c, size_t index) {
    static_cast<Call*>(c)->task(static_cast<Call*>(c)->context, static_cast<int64_t>(index));
  };
  // One batch per task: threads claim tasks one by one, which balances tasks of unequal length.
  const size_t total = static_cast<size_t>(n);
  check(api_, abi::call<abi::KernelContextParallelFor>(api_, context_, static_cast<void (*)(void*, size_t)>(one), total,
                                                       total, static_cast<void*>(&call)));
}

Tensor KernelContext::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(api_, abi::call<abi::KernelContextGetInput>(api_, context_, index, &value));
  return tensor_of(api_, value);
}

Tensor KernelContext::output(size_t index, std::initializer_list<int64_t> shape) const {
  OrtValue* value = nullptr;
  check(api_, abi::call<abi::KernelContextGetOutput>(api_, context_, index, shape.begin(), shape.size(), &value));
  Tensor tensor;
  tensor.shape = shape;
  check(api_, abi::call<abi::GetTensorMutableData>(api_, value, &tensor.data));
  return tensor;
}

Scratch KernelContext::scratch(size_t bytes) const {
  OrtMemoryInfo* info = nullptr;
  check(api_, abi::call<abi::CreateCpuMemoryInfo>(api_, abi::kArenaAllocator, abi::kDefaultMemory, &info));
  const auto release = abi::function<abi::ReleaseMemoryInfo>(api_);
  const std::unique_ptr<OrtMemoryInfo, decltype(release)> owner(info, release);
  OrtAllocator* allocator = nullptr;
  check(api_, abi::call<abi::KernelContextGetAllocator>(api_, context_, static_cast<const OrtMemoryInfo*>(info),
                                                        &allocator));
  return Scratch(api_, Scratch::Allocator(allocator, abi::function<abi::ReleaseAllocator>(api_)), bytes);
}

}  // namespace koe5
