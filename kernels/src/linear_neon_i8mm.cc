// Products of 8-bit integers by SMMLA, which multiplies eight k of two rows by eight k of two columns and adds the
// result to 2 x 2 sums. Compiled for i8mm.
#include "linear_neon.h"

namespace koe5 {
namespace {

struct Dot : NeonDot<Dot, 2> {
  static KOE5_INLINE int32x4_t multiply(int32x4_t sums, int8x16_t rows, int8x16_t columns) {
    return vmmlaq_s32(sums, rows, columns);
  }
  static KOE5_INLINE void store_rows(const UnitSums<Ints>& sums, int32_t* to) {
    store_two_rows(sums, to, to + kColumns);
  }
  static int64_t most_rows(int64_t) { return kVectorRows; }
};

}  // namespace

extern const LinearKernels kI8mmKernels = kernels_by<Dot>();

}  // namespace koe5
