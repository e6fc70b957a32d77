// libcudnn.so.9: counts reductions without computing them. Supports none of cuDNN's graphs, such as its attention.
#include <cstddef>

#include "standin.h"

using namespace standin;

namespace {

constexpr int kNotSupported = 3000;
char thing;

int make(void** made) {
  *made = &thing;
  return kSuccess;
}

}  // namespace

#define NOT_SUPPORTED(name) \
  int name(...) { return kNotSupported; }
#define NOTHING(name) \
  int name(...) { return kSuccess; }

extern "C" {

int cudnnCreate(void** made) { return make(made); }
int cudnnCreateTensorDescriptor(void** made) { return make(made); }
int cudnnCreateReduceTensorDescriptor(void** made) { return make(made); }
size_t cudnnGetVersion() { return 91300; }
const char* cudnnGetErrorString(int) { return "stand-in"; }
void cudnnGetLastErrorString(char* words, size_t) { words[0] = 0; }
NOTHING(cudnnDestroy)
NOTHING(cudnnSetStream)
NOTHING(cudnnGetStream)
NOTHING(cudnnDestroyTensorDescriptor)
NOTHING(cudnnDestroyReduceTensorDescriptor)
NOTHING(cudnnSetTensorNdDescriptor)
NOTHING(cudnnSetReduceTensorDescriptor)

NOT_SUPPORTED(cudnnBackendCreateDescriptor)
NOT_SUPPORTED(cudnnBackendDestroyDescriptor)
NOT_SUPPORTED(cudnnBackendExecute)
NOT_SUPPORTED(cudnnBackendFinalize)
NOT_SUPPORTED(cudnnBackendGetAttribute)
NOT_SUPPORTED(cudnnBackendSetAttribute)

int cudnnGetReductionWorkspaceSize(void*, void*, void*, void*, size_t* bytes) {
  *bytes = 0;
  return kSuccess;
}
int cudnnGetReductionIndicesSize(void*, void*, void*, void*, size_t* bytes) {
  *bytes = 0;
  return kSuccess;
}
int cudnnReduceTensor(...) {
  count("cudnnReduceTensor");
  return kSuccess;
}

}  // extern "C"
