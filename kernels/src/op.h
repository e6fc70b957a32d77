// The interface between operators and ONNX Runtime: attributes and constant inputs when a kernel is created, tensors
// and threads when it runs. Operators throw Error; register.cc turns it into an ONNX Runtime status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "pool.h"

namespace koe5 {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Element types, with the values of ONNX Runtime's ONNXTensorElementDataType.
enum class Type : int { f32 = 1, u8 = 2, s8 = 3, i32 = 6, bf16 = 16 };

struct Tensor {
  void* data = nullptr;
  std::vector<int64_t> shape;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Throws unless the tensor has the shape `expected`, where -1 matches any length. Messages call the tensor `name`.
void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> expected);

// Throws unless `width` is a multiple of 64, as rotation requires. The message starts with `what`.
void check_rotated(int64_t width, const char* what);

// Throws unless offsets i32[n+1] rise from 0 to `tokens`, with at least one token per text. Returns n.
int64_t check_offsets(const Tensor& offsets, int64_t tokens);

class KernelInfo {
 public:
  KernelInfo(const OrtApi* api, const OrtKernelInfo* info, int threads, const std::string& packed_folder)
      : api_(api), info_(info), threads_(threads), packed_folder_(packed_folder) {}

  float attribute_float(const char* name) const;
  int64_t attribute_int(const char* name) const;
  std::string node_name() const;
  // Returns input `index`, which must be a constant of the graph. Its data is valid only while the session is created.
  Tensor constant_input(size_t index, const char* name) const;
  int threads() const { return threads_; }
  // Returns the path of the node's packed weights, or an empty string if the session does not share weights.
  std::string packed_file() const;
  const OrtApi* api() const { return api_; }

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
  int threads_;
  const std::string& packed_folder_;
};

// Memory from ONNX Runtime's arena, 64-byte aligned and returned at the end of the scope.
class Scratch {
 public:
  using Allocator = std::unique_ptr<OrtAllocator, abi::ReleaseAllocator::Pointer>;

  Scratch(const OrtApi* api, Allocator allocator, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_) + 63) & ~uintptr_t{63});
  }

 private:
  const OrtApi* api_;
  Allocator allocator_;
  void* memory_ = nullptr;
};

// The thread pool of the ONNX Runtime session.
class SessionPool final : public Pool {
 public:
  SessionPool(const OrtApi* api, const OrtKernelContext* context, int threads)
      : api_(api), context_(context), threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t n, void (*task)(void*, int64_t), void* context) override;

 private:
  const OrtApi* api_;
  const OrtKernelContext* context_;
  int threads_;
};

class KernelContext {
 public:
  KernelContext(const OrtApi* api, OrtKernelContext* context, int threads)
      : api_(api), context_(context), pool_(api, context, threads) {}

  Tensor input(size_t index) const;
  Tensor output(size_t index, std::initializer_list<int64_t> shape) const;
  Scratch scratch(size_t bytes) const;
  Pool& pool() { return pool_; }

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
  SessionPool pool_;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(KernelContext& context) = 0;
};

struct OpDefinition {
  const char* name;
  std::vector<Type> inputs;
  std::vector<Type> outputs;
  std::unique_ptr<Kernel> (*create)(const KernelInfo& info);
};

}  // namespace koe5
