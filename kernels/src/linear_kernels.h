// Interface between linear.cc, which splits the work, and the units compiled for one instruction set. Contains only
// plain data and declarations of functions. The linker must never choose a copy compiled for AVX512 for an inline
// function that runs on another CPU.
#pragma once

#include <cstdint>

#include "units.h"

namespace koe5 {

// Packed weights s8[k, n]: [n/32][k/64][2][16][16][4].
//
// A panel is 32 columns. k advances in steps of 64: a step is two blocks of 1 KiB with 16 columns each, and a block is
// 16 lines with four k of each of its columns, which is one AMX tile or 16 operands of VPDPBUSD. A panel is contiguous.
// k is padded with zeros to a multiple of 64, n to a multiple of 32. "Four k" are four consecutive values of k.
// Files store weights in this layout (packed_file.h): increment kPackedLayout whenever the order or the contents of a
// panel change. On ARM, a block is [8][16][8] instead: eight k of two columns are one operand of SMMLA or SDOT.
#if defined(__aarch64__)
constexpr uint32_t kPackedLayout = 2;
#else
constexpr uint32_t kPackedLayout = 1;
#endif
constexpr int64_t kStepDepth = 64, kPanelColumns = 32, kBlockBytes = 1024;

struct WeightView {
  const int8_t* panels;
  const float* scales;  // f32[n]
  const int32_t* sums;  // i32[n], sum of each column
  int64_t k, padded_k, n;
};

// The 8-bit value that represents an activation of 0.
constexpr int32_t kZeroPoint = 128;

static inline const int8_t* panel_at(const WeightView& w, int64_t column) { return w.panels + column * w.padded_k; }

// The part of a product that one task computes: all rows of `a` x columns [first, last) of `w`. `first` is a multiple of
// 64.
struct Product {
  const uint8_t* a;    // u8[rows, k]
  const float* scale;  // f32[rows]
  int64_t rows;
  WeightView w;
  int64_t first, last;
};

// Output of a product: values plus bias, as [n / width][rows][width], starting at a task's first row. In this layout
// the results of a block of columns are contiguous; in [rows, n] they would touch one cache line on each of many pages.
template <class Value>
struct Store {
  const float* bias;
  Value* out;
  int64_t rows, width;
};

struct StoreBf16 : Store<uint16_t> {};

// Sums kept until their row is complete, in panels of 32.
struct StoreSums : Store<float> {};

// GELU values kept until their row is complete, as fp16 of kGeluShrink times the value: half the memory of fp32. The
// range is 1.6e7 before rotation and 2e6 after it. Values have 11 significant bits, or an error of 8e-6 if they are
// small.
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
  // Maximum number of rows of k bytes that stay in a core's L2 while all weights are read.
  int64_t (*most_rows)(int64_t k);
  // With fewer rows per task, reading the weights takes longer than multiplying.
  int64_t fewest_rows;
  // Scratch memory for a product, 64-byte aligned.
  int64_t (*scratch_bytes)(int64_t rows, int64_t k);
  void (*bf16)(const Product&, const StoreBf16&, void* scratch);
  void (*sums)(const Product&, const StoreSums&, void* scratch);
  void (*gelu)(const Product&, const StoreGelu&, void* scratch);
};

// For products without tiles. Blocks of 72 rows read the weights less often than blocks of 48, and batches of 512 rows
// split more evenly than with 96 (measured). With fewer than 24 rows, each weight is used too few times per read.
constexpr int64_t kVectorRows = 72, kFewestVectorRows = 24;

extern const LinearKernels kAvx2Kernels, kAvxVnniKernels, kVnniKernels, kAmxKernels, kDotprodKernels,
    kI8mmKernels;

// Packs up to 64 columns of s8[k, stride] into blocks, in groups of 16: the first block of group i is at blocks[i], the
// next one 2 KiB later. `k` is a multiple of 4. `sums` receives the sums of the columns.
void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums);

}  // namespace koe5
