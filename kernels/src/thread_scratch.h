// Scratch memory of a thread. It grows as tasks need it and is reused by later tasks.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "units.h"

namespace koe5 {

class ThreadScratch {
 public:
  ~ThreadScratch() { std::free(memory_); }

  // Returns memory aligned to a cache line, or null if none can be allocated.
  char* at_least(int64_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      const int64_t whole = round_up(bytes, kCacheLine);
      memory_ = static_cast<char*>(std::aligned_alloc(kCacheLine, static_cast<size_t>(whole)));
      bytes_ = memory_ == nullptr ? 0 : whole;
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace koe5
