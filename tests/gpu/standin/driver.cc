// libcuda.so.1: GPUs, kernels loaded from images, and the state that the simulated libraries share.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "standin.h"

namespace standin {

State& state() {
  static State* const the_state = new State;  // never freed, because libraries may be unloaded in any order
  return *the_state;
}

namespace {

int64_t setting(const char* name, int64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

int64_t capability() { return setting("STANDIN_CAPABILITY", 90); }

}  // namespace

int64_t gpus() { return setting("STANDIN_GPUS", 1); }
int capability_major() { return static_cast<int>(capability() / 10); }
int capability_minor() { return static_cast<int>(capability() % 10); }
int64_t memory_bytes() { return setting("STANDIN_MEMORY", int64_t{80} << 30); }

void count(const std::string& event, int64_t bytes) {
  const std::lock_guard lock(state().mutex);
  Event& found = state().events[event];
  ++found.times;
  found.bytes += bytes;
}

bool inside(const std::map<uintptr_t, size_t>& ranges, const void* at, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  auto above = ranges.upper_bound(address);
  if (above == ranges.begin()) return false;
  const auto& [start, size] = *--above;
  return address + bytes <= start + size;
}

int forbidden_while_capturing(const char* function) {
  const std::lock_guard lock(state().mutex);
  if (state().capturing == nullptr) return kSuccess;
  state().capturing->broken = true;
  count(std::string("forbidden ") + function);
  return kCaptureUnsupported;
}

bool captures(const void* stream) { return stream != nullptr && static_cast<const Stream*>(stream)->capturing; }

void on_stream(void* stream, const std::function<void()>& work) {
  const std::lock_guard lock(state().mutex);
  if (captures(stream)) {
    static_cast<Stream*>(stream)->graph->work.push_back(work);
  } else {
    work();
  }
}

int product(const char* name) {
  count(std::string(state().capturing == nullptr ? "product " : "captured product ") + name);
  return kSuccess;
}

int launch(const void* kernel, void* stream) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().kernels.find(kernel);
  const std::string name = found == state().kernels.end() ? "unknown" : found->second;
  count((captures(stream) ? "captured kernel " : "kernel ") + name);
  on_stream(stream, [] {});
  return kSuccess;
}

}  // namespace standin

using namespace standin;

namespace {

constexpr int kNoDevice = 101;
constexpr int kMajor = 75, kMinor = 76;

thread_local void* current_context = nullptr;
char contexts[64];

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorString(int, const char** words) {
  *words = "the stand-in's error";
  return kSuccess;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

int cuDeviceGetCount(int* number) {
  *number = static_cast<int>(gpus());
  return kSuccess;
}

int cuDeviceGet(int* device, int number) {
  *device = number;
  return number < gpus() ? int{kSuccess} : kNoDevice;
}

int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "stand-in", length);
  return kSuccess;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = memory_bytes();
  return kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == kMajor ? capability_major() : attribute == kMinor ? capability_minor() : 0;
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &contexts[device];
  return kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }

int cuCtxGetCurrent(void** context) {
  *context = current_context;
  return kSuccess;
}

int cuCtxSetCurrent(void* context) {
  current_context = context;
  return kSuccess;
}

int cuTensorMapEncodeTiled() { return kSuccess; }

// Kernels loaded from images, such as those for GPUs without flash attention.

int cuModuleLoadData(void** module, const void*) {
  *module = new char;
  return kSuccess;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  const std::lock_guard lock(state().mutex);
  *function = new char;
  state().kernels[*function] = name;
  return kSuccess;
}
int cuModuleUnload(void*) { return kSuccess; }
int cuFuncSetAttribute(void*, int, int) { return kSuccess; }
int cuFuncSetCacheConfig(void*, int) { return kSuccess; }
int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void* stream,
                   void**, void**) {
  return launch(function, stream);
}
int cuLaunchCooperativeKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                              void* stream, void**) {
  return launch(function, stream);
}
int cuLinkCreate_v2() { return kInvalidValue; }
int cuLinkAddData_v2() { return kInvalidValue; }
int cuLinkAddFile_v2() { return kInvalidValue; }
int cuLinkComplete() { return kInvalidValue; }
int cuLinkDestroy() { return kInvalidValue; }
int cuGetErrorName(int code, const char** name) { return cuGetErrorString(code, name); }

// Returns the events since the last call as lines of "times bytes event". The text is valid until the next call.
const char* standin_events() {
  static std::string text;
  const std::lock_guard lock(state().mutex);
  text.clear();
  for (const auto& [name, event] : state().events) {
    text += std::to_string(event.times) + " " + std::to_string(event.bytes) + " " + name + "\n";
  }
  state().events.clear();
  return text.c_str();
}

}  // extern "C"
