// Products of 8-bit integers by AVX2 alone. Compiled for AVX2.
//
// VPMADDUBSW multiplies bytes, adds the products of two neighboring inputs in 16 bits and saturates. The sum fits if
// the sum of the two weights has a magnitude of at most 128. In the panels this holds for all pairs, because packing
// takes a remainder from one weight of each larger pair: about one weight in 120 with 1,024 inputs, one in 250 with
// 4,096. The products of the remainders are exact in 32 bits, and are added to the initial sums of each row.
#include "linear_avx2.h"

namespace koe5 {
namespace {

// Largest number of rows that are multiplied by remainders at the same time.
constexpr int64_t kStripRows = 32;

inline __m128i load16(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

// Adds the products of 16 rows and two remainders.
KOE5_INLINE void add_remainders(Ints& sum, __m128i first, __m128i second, __m256i values) {
  const __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second));
  const __m256i high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second));
  sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(low, values));
  sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(high, values));
}

// Computes the sums of the products of 16 or 32 rows and the remainders [from, end) of a column. `evens` are the
// activations with an even k, as u8[k / 2, stride].
template <bool kBoth>
void multiply_remainders(const Remainders* from, const Remainders* end, const uint8_t* evens, int64_t stride,
                         int32_t* sums) {
  Ints left = int_zeros(), right = left;
  for (; from < end; ++from) {
    const uint8_t *const first = evens + from->pair[0] * stride, *const second = evens + from->pair[1] * stride;
    const __m256i values = each(from->value);
    add_remainders(left, load16(first), load16(second), values);
    if constexpr (kBoth) add_remainders(right, load16(first + 16), load16(second + 16), values);
  }
  store(sums, left);
  if constexpr (kBoth) store(sums + 16, right);
}

// Transposes the first `rows` rows of sums[16 columns][kStripRows] and adds `same`, the initial sums that all rows have.
void add_transposed(const int32_t* sums, const int32_t* same, int64_t rows, int32_t* to) {
  for (int64_t row = 0; row < rows; row += 4) {
    for (int64_t column = 0; column < kColumns; column += 4) {
      __m128 four[4];
      for (int i = 0; i < 4; ++i) {
        four[i] = _mm_load_ps(reinterpret_cast<const float*>(sums + (column + i) * kStripRows + row));
      }
      _MM_TRANSPOSE4_PS(four[0], four[1], four[2], four[3]);
      const __m128i initial = _mm_load_si128(reinterpret_cast<const __m128i*>(same + column));
      for (int i = 0; i < 4; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(to + (row + i) * kColumns + column),
                        _mm_add_epi32(initial, _mm_castps_si128(four[i])));
      }
    }
  }
}

// Transposes the even bytes of 16 rows and `depth` k (at most 32). If fewer rows exist, repeats the last one.
void transpose_evens(const uint8_t* a, int64_t k, int64_t rows, int64_t depth, uint8_t* to, int64_t stride) {
  const __m128i mask = _mm_set1_epi16(0xff);
  __m128i from[16], next[16];
  for (int64_t row = 0; row < 16; ++row) {
    const uint8_t* bytes = a + (row < rows ? row : rows - 1) * k;
    uint8_t whole[32] = {};
    if (depth < 32) {
      __builtin_memcpy(whole, bytes, static_cast<size_t>(depth));
      bytes = whole;
    }
    from[row] = _mm_packus_epi16(_mm_and_si128(load16(bytes), mask), _mm_and_si128(load16(bytes + 16), mask));
  }
  // Each turn interleaves the bytes of rows i and i + 8. Four turns transpose 16 rows.
  for (int turn = 0; turn < 4; ++turn) {
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
      next[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
    }
    for (int i = 0; i < 16; ++i) from[i] = next[i];
  }
  for (int64_t i = 0; i < depth / 2; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(to + i * stride), from[i]);
}

// Uses ten registers for sums, two for weights, one for activations, one for products and one for ones.
struct Dot {
  static constexpr int64_t kTileRows = 5, kInitialStride = kColumns;

  static KOE5_INLINE __m256i products(__m256i a, __m256i w) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1));
  }

  static KOE5_INLINE void add(Ints& sum, const uint8_t* a, const Ints& w) {
    const __m256i four = each(a);
    sum.low = _mm256_add_epi32(sum.low, products(four, w.low));
    sum.high = _mm256_add_epi32(sum.high, products(four, w.high));
  }

  // Stores the activations with an even k to `memory`, by k, for the remainders.
  static const uint8_t* activations(const Product& p, void* memory) {
    uint8_t* const evens = static_cast<uint8_t*>(memory);
    const int64_t k = p.w.k, stride = round_up(p.rows, 16);
    for (int64_t row = 0; row < p.rows; row += 16) {
      for (int64_t at = 0; at < k; at += 32) {
        const int64_t depth = k - at < 32 ? k - at : 32;
        transpose_evens(p.a + row * k + at, k, p.rows - row, depth, evens + at / 2 * stride + row, stride);
      }
    }
    return p.a;
  }

  static const int32_t* initial(const Product& p, int64_t column, const int32_t* same, void* memory) {
    const int64_t stride = round_up(p.rows, 16);
    const uint8_t* const evens = static_cast<const uint8_t*>(memory);
    int32_t* const to = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(memory) + p.w.k / 2 * stride);
    for (int64_t row = 0; row < p.rows; row += kStripRows) {
      const int64_t rows = p.rows - row < kStripRows ? p.rows - row : kStripRows;
      const auto multiply = rows > 16 ? multiply_remainders<true> : multiply_remainders<false>;
      alignas(64) int32_t sums[kColumns * kStripRows];
      for (int64_t i = 0; i < kColumns; ++i) {
        const int32_t* const ends = p.w.remainder_ends + column + i;
        multiply(p.w.remainders + ends[-1], p.w.remainders + ends[0], evens + row, stride, sums + i * kStripRows);
      }
      add_transposed(sums, same, rows, to + row * kColumns);
    }
    return to;
  }

  static Tile tile(int64_t rows) { return kTiles<Dot>[rows - 1]; }
  static int64_t row_bytes(int64_t k) { return k; }
  static int64_t most_rows(int64_t) { return 60; }
  static int64_t scratch_bytes(int64_t rows, int64_t k) {
    return kTileRows * kColumns * 4 + round_up(rows, 16) * (k / 2 + kColumns * 4);
  }
};

}  // namespace

extern const LinearKernels kAvx2Kernels = kernels_by<Dot>();

}  // namespace koe5
