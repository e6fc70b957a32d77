// Products of 8-bit integers by VPDPBUSD on 256-bit registers. Compiled for AVX2 and AVX-VNNI.
#include "linear_avx2.h"

namespace koe5 {
namespace {

// Uses 12 registers for sums, two for weights and one for activations.
struct Dot : SameInitial {
  static constexpr int64_t kTileRows = 6;

  static const uint8_t* activations(const Product& p, void*) { return p.a; }

  static KOE5_INLINE void add(Ints& sum, const uint8_t* a, const Ints& w) {
    const __m256i four = each(a);
    sum.low = _mm256_dpbusd_avx_epi32(sum.low, four, w.low);
    sum.high = _mm256_dpbusd_avx_epi32(sum.high, four, w.high);
  }

  static Tile tile(int64_t rows) { return kTiles<Dot>[rows - 1]; }
  static int64_t row_bytes(int64_t k) { return k; }
  static int64_t most_rows(int64_t) { return kVectorRows; }
  static int64_t scratch_bytes(int64_t, int64_t) { return kTileRows * kColumns * 4; }
};

}  // namespace

extern const LinearKernels kAvxVnniKernels = kernels_by<Dot>();

}  // namespace koe5
