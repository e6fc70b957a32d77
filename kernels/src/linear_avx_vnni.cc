// Products of 8-bit integers by VPDPBUSD on 256 bits. Compiled for AVX2 and AVX-VNNI.
#include "linear_avx2.h"

namespace koe5 {
namespace {

// 12 sums, 2 operands of weights and one of activations in 16 registers.
struct Dot {
  static constexpr int64_t kTileRows = 6;
  static constexpr int64_t kBytes = 4;  // of activations, for four k

  using Weights = Ints;

  static const uint8_t* activations(const Product& p, void*) { return p.a; }
  static int64_t activation_bytes(int64_t, int64_t) { return 0; }

  static KOE5_INLINE void add(Ints& sum, const uint8_t* a, const Weights& w) {
    int32_t four;
    __builtin_memcpy(&four, a, 4);
    const __m256i each = _mm256_set1_epi32(four);
    sum.low = _mm256_dpbusd_avx_epi32(sum.low, each, w.low);
    sum.high = _mm256_dpbusd_avx_epi32(sum.high, each, w.high);
  }
};

int64_t most_rows(int64_t) { return 72; }

}  // namespace

extern const LinearKernels kAvxVnniKernels = {
    Dot::kTileRows,
    most_rows,
    24,
    scratch_bytes<Dot>,
    multiply_by<Dot, StoreBf16>,
    multiply_by<Dot, StoreAdd>,
    multiply_by<Dot, StoreGelu>,
};

}  // namespace koe5
