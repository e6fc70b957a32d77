// libcublasLt.so.13: counts products without computing them, and reports an algorithm for every product.
#include <cstring>

#include "standin.h"

using namespace standin;

namespace {

char thing;

int make(void** made) {
  *made = &thing;
  return kSuccess;
}

}  // namespace

#define MAKE(name) \
  int name(void** made, ...) { return make(made); }
#define NOTHING(name) \
  int name(...) { return kSuccess; }

extern "C" {

MAKE(cublasLtCreate)
MAKE(cublasLtMatmulDescCreate)
MAKE(cublasLtMatmulPreferenceCreate)
MAKE(cublasLtMatrixLayoutCreate)
MAKE(cublasLtMatrixTransformDescCreate)
NOTHING(cublasLtDestroy)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatrixTransformDescDestroy)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoInit)

// Returns one result of 96 zero bytes, which include the status "success".
// Source: https://docs.nvidia.com/cuda/archive/13.0.0/cublas/#cublasltmatmulheuristicresult-t
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results, int* found) {
  std::memset(results, 0, 96);
  *found = 1;
  return kSuccess;
}

int cublasLtMatmul(...) { return product("cublasLtMatmul"); }
int cublasLtMatrixTransform(...) { return product("cublasLtMatrixTransform"); }

}  // extern "C"
