// State and functions that the simulated CUDA libraries share.
//
// Device memory is host memory. Copies are performed; kernels are counted by name and compute nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace standin {

// Codes of CUDA's runtime and driver. Source: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html
enum Code : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
};

struct Event {
  int64_t times = 0, bytes = 0;
};

struct Graph {
  std::vector<std::function<void()>> work;
};

struct Stream {
  bool capturing = false, broken = false;
  Graph* graph = nullptr;
};

struct State {
  std::recursive_mutex mutex;
  std::map<std::string, Event> events;
  std::map<uintptr_t, size_t> device, locked;  // size in bytes by address
  size_t device_bytes = 0;
  std::map<const void*, std::string> kernels;  // name by host function
  Stream* capturing = nullptr;
};

State& state();

// These return STANDIN_GPUS, STANDIN_CAPABILITY (such as 90) and STANDIN_MEMORY of the environment, or defaults.
int64_t gpus();
int capability_major();
int capability_minor();
int64_t memory_bytes();

void count(const std::string& event, int64_t bytes = 0);

// Returns true if [at, at + bytes) is inside one of the ranges.
bool inside(const std::map<uintptr_t, size_t>& ranges, const void* at, size_t bytes);

// If any stream captures, invalidates the capture and returns CUDA's error. Otherwise, returns kSuccess.
int forbidden_while_capturing(const char* function);

// Returns true if the stream, which may be null, captures.
bool captures(const void* stream);

// Runs `work` now, or adds it to the graph if `stream` captures.
void on_stream(void* stream, const std::function<void()>& work);

int product(const char* name);

// Counts a kernel launch.
int launch(const void* kernel, void* stream);

}  // namespace standin
