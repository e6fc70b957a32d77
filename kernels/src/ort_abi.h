// The part of ONNX Runtime's C ABI that the operators use: a table of functions that only grows at its end, and the
// struct that describes a custom operator. Declared here because the onnxruntime wheels do not contain the header.
// Source: onnxruntime_c_api.h (order of OrtApi and OrtCustomOp) and the static_asserts on slots in
// onnxruntime_c_api.cc of microsoft/onnxruntime. Slots are grouped by the API version that introduced them.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtApi;
struct OrtCustomOp;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null if this ONNX Runtime is older than `version`
  const char* (*GetVersionString)();
};

// Fields up to GetVariadicOutputHomogeneity exist since version 14 of the API, CreateKernelV2 and KernelComputeV2 since
// 16, the next three since 17, and the last four since 18. ONNX Runtime must not read the last four, because the
// operators declare version 17; they are declared as null in case it does.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // extern "C"

namespace koe5::abi {

// The version of the newest function used, KernelContext_ParallelFor of ONNX Runtime 1.17.
constexpr uint32_t kApiVersion = 17;

constexpr int kInvalidArgument = 2;  // OrtErrorCode
constexpr int kFail = 1;
constexpr int kArenaAllocator = 1;    // OrtAllocatorType
constexpr int kDefaultMemory = 0;     // OrtMemType
constexpr int kRequired = 0;          // OrtCustomOpInputOutputCharacteristic

// The index and the type of a function in the table.
template <size_t Index, class Function>
struct Slot {
  using Pointer = Function*;
  static constexpr size_t kIndex = Index;
};

// version 1
using CreateStatus = Slot<0, OrtStatus*(int code, const char* message)>;
using GetErrorMessage = Slot<2, const char*(const OrtStatus*)>;
using CreateCustomOpDomain = Slot<26, OrtStatus*(const char* domain, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Slot<51, OrtStatus*(OrtValue*, void**)>;
using GetDimensionsCount = Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using CreateCpuMemoryInfo = Slot<69, OrtStatus*(int allocator_type, int memory_type, OrtMemoryInfo**)>;
using AllocatorAlloc = Slot<75, OrtStatus*(OrtAllocator*, size_t, void**)>;
using AllocatorFree = Slot<76, OrtStatus*(OrtAllocator*, void*)>;
using KernelInfoGetAttributeFloat = Slot<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using KernelInfoGetAttributeInt = Slot<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>;
using KernelContextGetInput = Slot<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using KernelContextGetOutput =
    Slot<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t* dims, size_t rank, OrtValue**)>;
using ReleaseStatus = Slot<93, void(OrtStatus*)>;
using ReleaseMemoryInfo = Slot<94, void(OrtMemoryInfo*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void(OrtTensorTypeAndShapeInfo*)>;
// version 5
using ReleaseAllocator = Slot<132, void(OrtAllocator*)>;
// version 14
using HasSessionConfigEntry = Slot<237, OrtStatus*(const OrtSessionOptions*, const char* key, int*)>;
using GetSessionConfigEntry = Slot<238, OrtStatus*(const OrtSessionOptions*, const char* key, char*, size_t*)>;
// version 15
using KernelInfoGetNodeName = Slot<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)>;
using KernelInfoGetConstantInput =
    Slot<249, OrtStatus*(const OrtKernelInfo*, size_t, int* is_constant, const OrtValue**)>;
// Creates an OrtAllocator around the session's allocator. The caller must release it with ReleaseAllocator.
using KernelContextGetAllocator = Slot<253, OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**)>;
// version 17
using KernelContextParallelFor =
    Slot<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t total, size_t batches, void*)>;

// Returns the function of a slot. `api` must have at least the slot's version.
template <class S>
typename S::Pointer function(const OrtApi* api) {
  static_assert(sizeof(typename S::Pointer) == sizeof(void*));
  return reinterpret_cast<typename S::Pointer const*>(api)[S::kIndex];
}

template <class S, class... Arguments>
auto call(const OrtApi* api, Arguments... arguments) {
  return function<S>(api)(arguments...);
}

}  // namespace koe5::abi
