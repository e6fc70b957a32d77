// Memory that a thread works in: it grows as tasks need it, and the next task uses it again.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace koe5 {

class ThreadScratch {
 public:
  ~ThreadScratch() { std::free(memory_); }

  // Begins at a line of the cache; null where there is no memory.
  char* at_least(int64_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      const int64_t lines = (bytes + kLine - 1) / kLine;
      memory_ = static_cast<char*>(std::aligned_alloc(kLine, static_cast<size_t>(lines * kLine)));
      bytes_ = memory_ == nullptr ? 0 : lines * kLine;
    }
    return memory_;
  }

 private:
  static constexpr int64_t kLine = 64;
  char* memory_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace koe5
