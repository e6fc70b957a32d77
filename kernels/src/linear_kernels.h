// The border between linear.cc, which splits the work, and the units compiled for an instruction set. Plain data and
// plain functions only: an inline function compiled for AVX512 must never stand in for one called on another CPU.
#pragma once

#include <cstdint>

namespace koe5 {

// Packed weights s8[k, n]: [n/32][k/64][2][16][16][4].
//
// 32 columns at a time (a panel), k in steps of 64; a step is two blocks of 1 KiB with 16 columns each, a block 16
// lines with four k of each of its columns: an AMX tile, or 16 operands of VPDPBUSD. All that a panel holds is one
// stream. k is filled up to 64, n to 32, with zeros.
// Files keep weights like this (packed_file.h): whoever changes the order, or what a panel holds, raises kPackedLayout.
constexpr uint32_t kPackedLayout = 1;
constexpr int64_t kStepDepth = 64, kPanelColumns = 32, kBlockBytes = 1024;

struct WeightView {
  const int8_t* panels;
  const float* scales;  // f32[n]
  const int32_t* sums;  // i32[n], of each column
  int64_t k, padded_k, n;
};

// What activations of 0 are in 8 bits.
constexpr int32_t kZeroPoint = 128;

static inline const int8_t* panel_at(const WeightView& w, int64_t column) { return w.panels + column * w.padded_k; }

// The part of a product that one task computes: rows of a times columns [first, last) of w; first is a multiple of 64.
struct Product {
  const uint8_t* a;    // u8[rows, k]
  const float* scale;  // f32[rows]
  int64_t rows;
  WeightView w;
  int64_t first, last;
};

// What becomes of a product: values plus bias, to [n / width][rows][width], from a task's first row on. What the columns
// of a block give is then one stream, where in [rows, n] it would be a line on each of many pages.
template <class Value>
struct Store {
  const float* bias;
  Value* out;
  int64_t rows, width;
};

struct StoreBf16 : Store<uint16_t> {};

// Sums that wait for the rest of their row, in panels of 32.
struct StoreSums : Store<float> {};

// The same for GELU values, as fp16 of kGeluShrink times the value: half the memory of fp32. Up to 1.6e7 before they are
// rotated and 2e6 after that; to 11 bits, and never coarser than 8e-6.
struct StoreGelu : Store<uint16_t> {};
constexpr float kGeluShrink = 1.0f / 256;

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
  // Rows of k bytes that stay in a core's L2 while the weights pass.
  int64_t (*most_rows)(int64_t k);
  // Fewer rows a task than this, and reading the weights costs more than multiplying.
  int64_t fewest_rows;
  // Scratch for a product, 64-byte aligned.
  int64_t (*scratch_bytes)(int64_t rows, int64_t k);
  void (*bf16)(const Product&, const StoreBf16&, void* scratch);
  void (*sums)(const Product&, const StoreSums&, void* scratch);
  void (*gelu)(const Product&, const StoreGelu&, void* scratch);
};

extern const LinearKernels kAvx2Kernels, kAvxVnniKernels, kVnniKernels, kAmxKernels;

// Packs up to 64 columns, in sixteens, of s8[k, stride] into blocks: the first of each sixteen is at blocks[i], the
// next 2 KiB on. `sums` gets the sums of the columns.
void pack_columns(const int8_t* weight, int64_t stride, int64_t k, int64_t columns, int8_t* const* blocks,
                  int32_t* sums);

}  // namespace koe5
