// Interface to a thread pool: that of an ONNX Runtime session, or of the benchmark.
#pragma once

#include <cstdint>
#include <type_traits>

namespace koe5 {

class Pool {
 public:
  virtual ~Pool() = default;

  // Returns the expected number of threads. Affects how work is split, never the results.
  virtual int threads() const = 0;

  // Calls task(context, i) once for each i in 0..n-1, on any thread and in any order, and waits for all calls. Tasks
  // must not throw.
  virtual void run(int64_t n, void (*task)(void* context, int64_t index), void* context) = 0;

  template <class F>
  void parallel_for(int64_t n, F&& f) {
    using Function = std::remove_reference_t<F>;
    run(n, [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }
};

}  // namespace koe5
