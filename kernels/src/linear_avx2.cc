// Products of 8-bit integers by AVX2 alone. Compiled for AVX2.
//
// VPMADDUBSW, which multiplies bytes, saturates: the sum of two products of 255 x 127 does not fit into 16 bits.
// Instead, bytes are widened to 16 bits and multiplied by VPMADDWD, which is exact. Of each four k, the first and third
// are multiplied first, then the second and fourth.
#include "linear_avx2.h"

namespace koe5 {
namespace {

// Uses ten registers for sums, four for weights, one for activations and one for products.
struct Dot {
  static constexpr int64_t kTileRows = 5, kBytes = 2;

  struct Weights {
    Ints even, odd;

    KOE5_INLINE explicit Weights(const Ints& w)
        : even(wide(_mm256_slli_epi16(w.low, 8)), wide(_mm256_slli_epi16(w.high, 8))), odd(wide(w.low), wide(w.high)) {}
    // Sign-extends the upper byte of each 16 bits.
    static KOE5_INLINE __m256i wide(__m256i w) { return _mm256_srai_epi16(w, 8); }
  };

  // Widens activations to 16 bits. Of each four k, stores the first and third, then the second and fourth.
  static const uint8_t* activations(const Product& p, void* memory) {
    uint32_t* const out = static_cast<uint32_t*>(memory);
    for (int64_t i = 0; i < p.rows * p.w.k / 4; ++i) {
      uint32_t four;
      __builtin_memcpy(&four, p.a + i * 4, 4);
      out[2 * i] = four & 0x00ff00ff;
      out[2 * i + 1] = four >> 8 & 0x00ff00ff;
    }
    return static_cast<const uint8_t*>(memory);
  }

  static KOE5_INLINE void add_products(Ints& sum, __m256i two, const Ints& w) {
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(two, w.low));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(two, w.high));
  }

  static KOE5_INLINE void add(Ints& sum, const uint8_t* a, const Weights& w) {
    add_products(sum, each(a), w.even);
    add_products(sum, each(a + 4), w.odd);
  }

  static Tile tile(int64_t rows) { return kTiles<Dot>[rows - 1]; }
  static int64_t row_bytes(int64_t k) { return k * kBytes; }
  static int64_t most_rows(int64_t) { return 60; }
  static int64_t scratch_bytes(int64_t rows, int64_t k) { return kTileRows * kColumns * 4 + rows * k * kBytes; }
};

}  // namespace

extern const LinearKernels kAvx2Kernels = kernels_by<Dot>();

}  // namespace koe5
