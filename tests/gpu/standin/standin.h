// What the stand-in's libraries share: which memory is what, what was done, and which stream captures.
//
// Device memory is host memory. Copies are made; kernels compute nothing, and are counted by name.
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
  std::map<uintptr_t, size_t> device, locked;  // address to bytes
  size_t device_bytes = 0;
  std::map<const void*, std::string> kernels;  // host function to name
  Stream* capturing = nullptr;
};

State& state();

// What the environment says of the GPUs: STANDIN_GPUS, STANDIN_CAPABILITY (as 90), STANDIN_MEMORY.
int64_t gpus();
int capability_major();
int capability_minor();
int64_t memory_bytes();

void count(const std::string& event, int64_t bytes = 0);

// Whether [at, at + bytes) lies in one range of `ranges`.
bool inside(const std::map<uintptr_t, size_t>& ranges, const void* at, size_t bytes);

// kSuccess, or what CUDA says of a call that may not be made while any stream captures; the capture is lost then.
int forbidden_while_capturing(const char* function);

// Whether a stream, which may be null, captures.
bool captures(const void* stream);

// Do it now, or where `stream` captures, put it into the graph.
void on_stream(void* stream, const std::function<void()>& work);

// A product is asked for: counted.
int product(const char* name);

// A kernel is started: counted, and where `stream` captures, put into the graph.
int launch(const void* kernel, void* stream);

}  // namespace standin
