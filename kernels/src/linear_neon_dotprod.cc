// Products of 8-bit integers by SDOT, which adds the products of four k to each sum. Compiled for dotprod.
#include "linear_neon.h"

namespace koe5 {
namespace {

struct Dot : NeonDot<Dot, 1> {
  static KOE5_INLINE int32x4_t multiply(int32x4_t sums, int8x16_t row, int8x16_t columns) {
    return vdotq_s32(sums, row, columns);
  }
  // For each of two columns, a register holds two sums, of the first and of the last four k of each unit. Adds the two.
  static KOE5_INLINE void store_rows(const UnitSums<Ints>& sums, int32_t* to) {
    const Ints &l = sums.left, &r = sums.right;
    store(to, Ints{vpaddq_s32(l.a, l.b), vpaddq_s32(l.c, l.d), vpaddq_s32(r.a, r.b), vpaddq_s32(r.c, r.d)});
  }
  static int64_t most_rows(int64_t) { return 48; }  // each activation is stored twice
};

}  // namespace

extern const LinearKernels kDotprodKernels = kernels_by<Dot>();

}  // namespace koe5
