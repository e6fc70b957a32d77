// Products of 8-bit integers by AVX2 alone. Compiled for AVX2.
//
// VPMADDUBSW, which multiplies bytes, saturates: two products of 255 and 127 do not fit into 16 bits. Here bytes become
// 16 bits, whose products VPMADDWD adds up exactly: of four k the first and third, then the second and fourth.
#include "linear_avx2.h"

namespace koe5 {
namespace {

// 8 sums, 4 operands of weights, 2 of activations and a product in 16 registers.
struct Dot {
  static constexpr int64_t kTileRows = 4;
  static constexpr int64_t kBytes = 8;  // of activations, for four k: u16 of k 0, 2, 1, 3

  struct Weights {
    __m256i even_low, even_high, odd_low, odd_high;

    KOE5_INLINE explicit Weights(const Ints& w)
        : even_low(even(w.low)), even_high(even(w.high)), odd_low(odd(w.low)), odd_high(odd(w.high)) {}
    static KOE5_INLINE __m256i even(__m256i w) { return _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8); }
    static KOE5_INLINE __m256i odd(__m256i w) { return _mm256_srai_epi16(w, 8); }
  };

  static int64_t activation_bytes(int64_t rows, int64_t k) { return rows * k / 4 * kBytes; }

  // A copy in 16 bits.
  static const uint8_t* activations(const Product& p, void* scratch) {
    uint32_t* const out = static_cast<uint32_t*>(scratch);
    for (int64_t i = 0; i < p.rows * p.w.k / 4; ++i) {
      uint32_t four;
      __builtin_memcpy(&four, p.a + i * 4, 4);
      out[2 * i] = four & 0x00ff00ff;
      out[2 * i + 1] = four >> 8 & 0x00ff00ff;
    }
    return static_cast<const uint8_t*>(scratch);
  }

  static KOE5_INLINE __m256i each(const uint8_t* a) {
    int32_t two;
    __builtin_memcpy(&two, a, 4);
    return _mm256_set1_epi32(two);
  }

  static KOE5_INLINE void add(Ints& sum, const uint8_t* a, const Weights& w) {
    const __m256i even = each(a), odd = each(a + 4);
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(even, w.even_low));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(even, w.even_high));
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(odd, w.odd_low));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(odd, w.odd_high));
  }
};

int64_t most_rows(int64_t) { return 72; }

}  // namespace

extern const LinearKernels kAvx2Kernels = {
    Dot::kTileRows,
    most_rows,
    24,
    scratch_bytes<Dot>,
    multiply_by<Dot, StoreBf16>,
    multiply_by<Dot, StoreAdd>,
    multiply_by<Dot, StoreGelu>,
};

}  // namespace koe5
