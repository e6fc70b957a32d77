// Interface to a thread pool, so that kernels do not depend on its owner.
#pragma once

#include <cstdint>
#include <type_traits>

namespace koe5 {

class Pool {
 public:
  virtual ~Pool() = default;

  // Number of threads that may run tasks at once, as far as known. Affects how work is split, never the results.
  virtual int threads() const = 0;

  // Calls task(context, i) once for each i in 0..n-1, on any thread and in any order. Returns when all are done.
  // Tasks must not throw.
  virtual void run(int64_t n, void (*task)(void* context, int64_t index), void* context) = 0;

  template <class F>
  void parallel_for(int64_t n, F&& f) {
    using Function = std::remove_reference_t<F>;
    run(n, [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }
};

}  // namespace koe5
