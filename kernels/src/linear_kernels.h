// Interface between linear.cc, which splits the work, and the source files that are compiled for one instruction set.
// Inline functions here must be static: otherwise the linker keeps one copy, possibly the one compiled for AVX512, and
// code for other CPUs calls it.
#pragma once

#include <cstdint>

#include "units.h"

namespace koe5 {

// Layout of packed weights s8[k, n]: [n/32][k/64][2][16][16][4], where k are the inputs and n the outputs (columns) of
// a linear layer. k is padded with zeros to a multiple of 64, n to a multiple of 32.
//
// A panel holds 32 columns. It consists of steps of 64 k. A step has two blocks of 1 KiB, with 16 columns each. A block
// has 16 lines, with four consecutive k ("four k") of each column. A block is one AMX tile, and a line is one operand
// of a 512-bit VPDPBUSD. On ARM, a block is [8][16][8] instead: eight k of two columns are one operand of SMMLA or
// SDOT. At the level avx2, weights are limited, and WeightView::remainders contains the rest (linear_avx2.cc).
// Files contain this layout (packed_file.h): add a value when the order or the contents of packed weights change.
enum class PackedLayout : uint32_t { x86 = 1, arm = 2, avx2 = 3 };
constexpr int64_t kStepDepth = 64, kPanelColumns = 32, kBlockBytes = 1024;

// Parts of two weights of a column that are not in its panel. Weight number 2 * pair[i] of the column is the sum of
// value[i] and the weight in the panel.
struct Remainders {
  uint16_t pair[2];
  int16_t value[2];
};

struct WeightView {
  const int8_t* panels;
  const float* scales;  // f32[n]
  const int32_t* sums;  // i32[n], sum of each column, with remainders
  int64_t k, padded_k, n;
  // Only at the level avx2. The remainders of column i are [remainder_ends[i - 1], remainder_ends[i]) of `remainders`.
  const Remainders* remainders;
  const int32_t* remainder_ends;
};

// The 8-bit value that represents an activation of 0.
constexpr int32_t kZeroPoint = 128;

static inline const int8_t* panel_at(const WeightView& w, int64_t column) { return w.panels + column * w.padded_k; }

// The matrix product of one task: all rows of `a` x columns [first, last) of `w`. `first` is a multiple of 64.
struct Product {
  const uint8_t* a;    // u8[rows, k]
  const float* scale;  // f32[rows]
  int64_t rows;
  WeightView w;
  int64_t first, last;
};

// Output of a product plus bias, as [n / width][rows][width]. In this layout, the results of a block of columns are
// contiguous. In [rows, n], each row of the block would be on another memory page.
template <class Value>
struct Store {
  const float* bias;
  Value* out;  // at the first row of the task
  int64_t rows, width;
};

struct StoreBf16 : Store<uint16_t> {};

// Values that are kept in panels of 32 columns until their row is complete.
struct StoreSums : Store<float> {};

// Values after GELU that are kept in panels until their row is complete. kGeluShrink times the value is stored as fp16,
// which takes half the memory of fp32. The largest magnitude is 1.6e7, or 2e6 after rotation, which multiplies the
// stored values by 8. The relative error is 2^-11, and the absolute error of values near 0 is 8e-6.
struct StoreGelu : Store<uint16_t> {};
constexpr float kGeluShrink = 1.0f / 256;

// Number of values in a block that is rotated together (rotation.h).
constexpr int64_t kRotated = 64;

struct AddNorm {
  const float* x;  // f32[rows, n], the residual; y = norm(x * skip + sums)
  const float *skip, *bias, *gain, *shift;
  float epsilon;
};

struct QuantizedOutput {
  uint8_t* q;    // u8[rows, n]
  float* scale;  // f32[rows]
};

struct LinearKernels {
  // Rows of a register tile.
  int64_t tile_rows;
  // Maximum number of rows per task, such that rows of k bytes stay in a core's L2 while all weights are read.
  int64_t (*most_rows)(int64_t k);
  // With fewer rows per task, reading the weights takes longer than multiplying.
  int64_t fewest_rows;
  // Bytes of scratch memory for a product. The memory must be 64-byte aligned.
  int64_t (*scratch_bytes)(int64_t rows, int64_t k);
  void (*bf16)(const Product&, const StoreBf16&, void* scratch);
  void (*sums)(const Product&, const StoreSums&, void* scratch);
  void (*gelu)(const Product&, const StoreGelu&, void* scratch);
};

// most_rows (unless they define their own) and fewest_rows of instruction sets other than AMX. Blocks of 72 rows read
// the weights less often than blocks of 48, and split a batch of 512 rows more evenly than blocks of 96.
constexpr int64_t kVectorRows = 72, kFewestVectorRows = 24;

extern const LinearKernels kAvx2Kernels, kAvxVnniKernels, kVnniKernels, kAmxKernels, kDotprodKernels,
    kI8mmKernels;

// Packs up to 64 columns of s8[k, stride] into blocks, in groups of 16 columns: the first block of group i is at
// blocks[i], and each further block of the group 2 KiB later. `k` is a multiple of 4. Stores the sum of each column to
// `sums`.
void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums);

#if defined(__x86_64__)
// Limits the sum of each pair of weights (inputs 0 and 1, 2 and 3, ...) to a magnitude of 128, in the blocks of 16
// columns that start at `blocks`. Stores what this subtracts to found[16][k / 4], and the number of weights of each
// column to `counts`.
void limit_pairs(int8_t* blocks, int64_t k, Remainders* found, int32_t* counts);
#endif

}  // namespace koe5
