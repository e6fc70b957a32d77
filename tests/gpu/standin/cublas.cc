// libcublas.so.13: counts calls of functions that compute, without computing anything.
#include "standin.h"

using namespace standin;

namespace {

char handle;

}  // namespace

#define PRODUCT(name) \
  int name(...) { return product(#name); }
#define NOTHING(name) \
  int name(...) { return kSuccess; }

extern "C" {

int cublasCreate_v2(void** made) {
  *made = &handle;
  return kSuccess;
}
int cublasGetMathMode(void*, int* mode) {
  *mode = 0;
  return kSuccess;
}
const char* cublasGetStatusName(int) { return "stand-in"; }
const char* cublasGetStatusString(int) { return "stand-in"; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetStream_v2)

PRODUCT(cublasDgeam)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgetrfBatched)
PRODUCT(cublasDgetriBatched)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasScopy_v2)
PRODUCT(cublasSgeam)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgetrfBatched)
PRODUCT(cublasSgetriBatched)
PRODUCT(cublasSscal_v2)

}  // extern "C"
