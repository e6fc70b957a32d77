// libcudart.so.13: functions that ONNX Runtime's CUDA provider calls.
#include <cstdlib>
#include <cstring>

#include "standin.h"

using namespace standin;

namespace {

struct Dim3 {
  unsigned x, y, z;
};

struct Launch {
  Dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};

thread_local std::vector<Launch> pushed;

int allocate(void** at, size_t bytes, std::map<uintptr_t, size_t>& ranges) {
  *at = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + 4096);
  if (*at == nullptr) return kOutOfMemory;
  std::memset(*at, 0, bytes);
  ranges[reinterpret_cast<uintptr_t>(*at)] = bytes;
  return kSuccess;
}

int allocate_device(void** at, size_t bytes) {
  const std::lock_guard lock(state().mutex);
  if (state().device_bytes + bytes > static_cast<size_t>(memory_bytes())) {
    count("refused", static_cast<int64_t>(bytes));
    return kOutOfMemory;
  }
  state().device_bytes += bytes;
  count("allocated", static_cast<int64_t>(bytes));
  return allocate(at, bytes, state().device);
}

void release(void* at, std::map<uintptr_t, size_t>& ranges) {
  ranges.erase(reinterpret_cast<uintptr_t>(at));
  std::free(at);
}

int free_device(void* at) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().device.find(reinterpret_cast<uintptr_t>(at));
  if (found == state().device.end()) return at == nullptr ? kSuccess : kInvalidValue;
  state().device_bytes -= found->second;
  release(at, state().device);
  return kSuccess;
}

const char* side_of(const void* at, size_t bytes) {
  if (inside(state().device, at, bytes)) return "device";
  return inside(state().locked, at, bytes) ? "locked" : "pageable";
}

// Performs or captures a copy. Returns an error code if CUDA would reject the copy during a capture.
int copy(void* to, const void* from, size_t bytes, void* stream, bool waits) {
  const std::lock_guard lock(state().mutex);
  const std::string sides = std::string(side_of(from, bytes)) + " to " + side_of(to, bytes);
  const bool captured = captures(stream);
  if (waits || (captured && sides.find("pageable") != std::string::npos)) {
    if (const int code = forbidden_while_capturing(("copy " + sides).c_str())) return code;
  }
  count((captured ? "captured copy " : "copy ") + sides, static_cast<int64_t>(bytes));
  on_stream(stream, [=] { std::memmove(to, from, bytes); });
  return kSuccess;
}

void put(void* struct_, size_t offset, int64_t value, size_t bytes) {
  std::memcpy(static_cast<char*>(struct_) + offset, &value, bytes);
}

}  // namespace

extern "C" {

// Launches.

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, Dim3*, Dim3*, int*) {
  const std::lock_guard lock(state().mutex);
  state().kernels[host] = name;
}

int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return kSuccess;
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, void* stream) {
  pushed.push_back({grid, block, shared_bytes, stream});
  return 0;
}

int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared_bytes, void** stream) {
  const Launch last = pushed.back();
  pushed.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *stream = last.stream;
  return kSuccess;
}

int __cudaLaunchKernel(const void* kernel, Dim3, Dim3, void**, size_t, void* stream) { return launch(kernel, stream); }
int cudaLaunchKernel(const void* kernel, Dim3, Dim3, void**, size_t, void* stream) { return launch(kernel, stream); }
int cudaLaunchCooperativeKernel(const void* kernel, Dim3, Dim3, void**, size_t, void* stream) {
  return launch(kernel, stream);
}

struct LaunchConfig {
  Dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};
int cudaLaunchKernelExC(const LaunchConfig* config, const void* kernel, void**) { return launch(kernel, config->stream); }

int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  count("host function");
  on_stream(stream, [=] { function(data); });
  return kSuccess;
}

int cudaFuncGetAttributes(void* attributes, const void*) {
  std::memset(attributes, 0, 144);
  put(attributes, 24, 1024, 4);  // maxThreadsPerBlock
  return kSuccess;
}
int cudaFuncSetAttribute(const void*, int, int) { return kSuccess; }
int cudaKernelSetAttributeForDevice(const void*, int, int, int) { return kSuccess; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return kSuccess;
}
int cudaLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  *library = const_cast<void*>(code);
  return kSuccess;
}
int cudaLibraryGetKernel(void** kernel, void* library, const char* name) {
  const std::lock_guard lock(state().mutex);
  *kernel = library;
  state().kernels[library] = name;
  return kSuccess;
}
int cudaLibraryUnload(void*) { return kSuccess; }
int cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long, int* status) {
  *function = reinterpret_cast<void*>(+[]() -> int { return kSuccess; });
  if (status != nullptr) *status = 0;
  return kSuccess;
}

// Device properties.

int cudaGetDeviceCount(int* number) {
  *number = static_cast<int>(gpus());
  return kSuccess;
}
thread_local int device = 0;
int cudaGetDevice(int* number) {
  *number = device;
  return kSuccess;
}
int cudaSetDevice(int number) {
  device = number;
  return number < gpus() ? int{kSuccess} : 101;
}
int cudaDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
int cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

// Offsets of cudaDeviceProp in CUDA 13, and values of an H100.
// Source: https://docs.nvidia.com/cuda/archive/13.0.0/cuda-runtime-api/structcudaDeviceProp.html
int cudaGetDeviceProperties(void* properties, int) {
  std::memset(properties, 0, 1008);
  std::strcpy(static_cast<char*>(properties), "stand-in");
  put(properties, 288, memory_bytes(), 8);
  put(properties, 296, 48 << 10, 8);   // sharedMemPerBlock
  put(properties, 304, 65536, 4);      // regsPerBlock
  put(properties, 308, 32, 4);         // warpSize
  put(properties, 320, 1024, 4);       // maxThreadsPerBlock
  put(properties, 324, 1024, 4);       // maxThreadsDim
  put(properties, 328, 1024, 4);
  put(properties, 332, 64, 4);
  put(properties, 336, 2147483647, 4);  // maxGridSize
  put(properties, 340, 65535, 4);
  put(properties, 344, 65535, 4);
  put(properties, 352, 65536, 8);  // totalConstMem
  put(properties, 360, capability_major(), 4);
  put(properties, 364, capability_minor(), 4);
  put(properties, 384, 132, 4);        // multiProcessorCount
  put(properties, 588, 1, 4);          // unifiedAddressing
  put(properties, 596, 50 << 20, 4);   // l2CacheSize
  put(properties, 604, 2048, 4);       // maxThreadsPerMultiProcessor
  put(properties, 624, 228 << 10, 8);  // sharedMemPerMultiprocessor
  put(properties, 632, 65536, 4);      // regsPerMultiprocessor
  put(properties, 672, 227 << 10, 8);  // sharedMemPerBlockOptin
  return kSuccess;
}

// Numbers of cudaDeviceAttr. Source: as above, group__CUDART__TYPES.html
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  static const std::map<int, int> values = {{1, 1024},       {8, 48 << 10}, {10, 32},   {12, 65536},
                                            {16, 132},       {38, 50 << 20}, {39, 2048}, {95, 1},
                                            {97, 227 << 10}, {115, 0}};
  const auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  if (attribute == 75) *value = capability_major();
  if (attribute == 76) *value = capability_minor();
  return kSuccess;
}

// Memory.

int cudaMalloc(void** at, size_t bytes) {
  if (const int code = forbidden_while_capturing("cudaMalloc")) return code;
  return allocate_device(at, bytes);
}
int cudaMallocFromPoolAsync(void** at, size_t bytes, void*, void*) { return allocate_device(at, bytes); }
int cudaFree(void* at) {
  if (const int code = forbidden_while_capturing("cudaFree")) return code;
  return free_device(at);
}
int cudaFreeAsync(void* at, void*) { return free_device(at); }
int cudaHostAlloc(void** at, size_t bytes, unsigned) {
  if (const int code = forbidden_while_capturing("cudaHostAlloc")) return code;
  const std::lock_guard lock(state().mutex);
  return allocate(at, bytes, state().locked);
}
int cudaMallocHost(void** at, size_t bytes) { return cudaHostAlloc(at, bytes, 0); }
int cudaFreeHost(void* at) {
  if (const int code = forbidden_while_capturing("cudaFreeHost")) return code;
  const std::lock_guard lock(state().mutex);
  release(at, state().locked);
  return kSuccess;
}
int cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  const std::lock_guard lock(state().mutex);
  *total = static_cast<size_t>(memory_bytes());
  *free_bytes = *total - state().device_bytes;
  return kSuccess;
}
int cudaMemPoolCreate(void** pool, const void*) {
  static char the_pool;
  *pool = &the_pool;
  return kSuccess;
}
int cudaMemPoolDestroy(void*) { return kSuccess; }
int cudaMemPoolGetAttribute(void*, int, void* value) {
  put(value, 0, 0, 8);
  return kSuccess;
}
int cudaMemPoolSetAttribute(void*, int, void*) { return kSuccess; }
int cudaMemPoolTrimTo(void*, size_t) { return kSuccess; }

int cudaMemcpy(void* to, const void* from, size_t bytes, int) { return copy(to, from, bytes, nullptr, true); }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void* stream) {
  return copy(to, from, bytes, stream, false);
}
int cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, int,
                      void* stream) {
  for (size_t row = 0; row < height; ++row) {
    const int code = copy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                          width, stream, false);
    if (code) return code;
  }
  return kSuccess;
}
int cudaMemcpyFromSymbol(void* to, const void*, size_t bytes, size_t, int) {
  std::memset(to, 0, bytes);
  return kSuccess;
}
int cudaMemset(void* at, int value, size_t bytes) {
  if (const int code = forbidden_while_capturing("cudaMemset")) return code;
  std::memset(at, value, bytes);
  return kSuccess;
}
int cudaMemsetAsync(void* at, int value, size_t bytes, void* stream) {
  count("memset", static_cast<int64_t>(bytes));
  on_stream(stream, [=] { std::memset(at, value, bytes); });
  return kSuccess;
}
// cudaPointerAttributes: kind at 0 (0 unregistered, 1 host, 2 device), GPU at 4, addresses of device and host at 8, 16.
int cudaPointerGetAttributes(void* attributes, const void* at) {
  const std::lock_guard lock(state().mutex);
  const bool on_device = inside(state().device, at, 1), is_locked = inside(state().locked, at, 1);
  std::memset(attributes, 0, 88);
  put(attributes, 0, on_device ? 2 : is_locked ? 1 : 0, 4);
  if (on_device || is_locked) put(attributes, 8, reinterpret_cast<int64_t>(at), 8);
  if (!on_device) put(attributes, 16, reinterpret_cast<int64_t>(at), 8);
  return kSuccess;
}

// Streams, events and graphs.

int cudaStreamCreateWithFlags(void** stream, unsigned) {
  *stream = new Stream;
  return kSuccess;
}
int cudaStreamCreate(void** stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(void* stream) {
  delete static_cast<Stream*>(stream);
  return kSuccess;
}
int cudaStreamSynchronize(void*) { return forbidden_while_capturing("cudaStreamSynchronize"); }
int cudaDeviceSynchronize() { return forbidden_while_capturing("cudaDeviceSynchronize"); }
int cudaEventSynchronize(void*) { return forbidden_while_capturing("cudaEventSynchronize"); }
int cudaStreamWaitEvent(void*, void*, unsigned) { return kSuccess; }
int cudaEventCreateWithFlags(void** event, unsigned) {
  *event = new char;
  return kSuccess;
}
int cudaEventCreate(void** event) { return cudaEventCreateWithFlags(event, 0); }
int cudaEventDestroy(void* event) {
  delete static_cast<char*>(event);
  return kSuccess;
}
int cudaEventRecord(void*, void*) { return kSuccess; }
int cudaEventRecordWithFlags(void*, void*, unsigned) { return kSuccess; }
int cudaEventElapsedTime(float* milliseconds, void*, void*) {
  *milliseconds = 1;
  return kSuccess;
}

int cudaStreamBeginCapture(void* stream, int) {
  const std::lock_guard lock(state().mutex);
  auto* const on = static_cast<Stream*>(stream);
  if (on == nullptr || state().capturing != nullptr) return kCaptureUnsupported;
  *on = {true, false, new Graph};
  state().capturing = on;
  count("capture begins");
  return kSuccess;
}
int cudaStreamEndCapture(void* stream, void** graph) {
  const std::lock_guard lock(state().mutex);
  auto* const on = static_cast<Stream*>(stream);
  *graph = on->broken ? nullptr : on->graph;
  const int code = on->broken ? kCaptureInvalidated : kSuccess;
  if (on->broken) delete on->graph;
  *on = {};
  state().capturing = nullptr;
  count(code ? "capture lost" : "capture ends");
  return code;
}
int cudaStreamIsCapturing(void* stream, int* status) {
  *status = !captures(stream) ? 0 : static_cast<Stream*>(stream)->broken ? 2 : 1;
  return kSuccess;
}
int cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
  *executable = new Graph(*static_cast<Graph*>(graph));
  return kSuccess;
}
int cudaGraphDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return kSuccess;
}
int cudaGraphExecDestroy(void* executable) { return cudaGraphDestroy(executable); }
int cudaGraphLaunch(void* executable, void*) {
  const std::lock_guard lock(state().mutex);
  count("graph launched");
  for (const auto& work : static_cast<Graph*>(executable)->work) work();
  return kSuccess;
}

// Errors are returned to the caller and not stored.

int cudaGetLastError() { return kSuccess; }
int cudaPeekAtLastError() { return kSuccess; }
const char* cudaGetErrorName(int) { return "stand-in"; }
const char* cudaGetErrorString(int code) {
  if (code == kOutOfMemory) return "out of memory";
  return code == kCaptureUnsupported ? "operation not permitted when stream is capturing" : "another error";
}

}  // extern "C"
