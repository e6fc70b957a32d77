// Linear layers of 8-bit integers, fused with the operations that follow them. Does not depend on ONNX Runtime.
//
// Activations are u8 with one scale per row: value = scale[row] * (u8 - kZeroPoint). Weights are s8 with one scale per
// column and are packed once. Sums are exact in int32, so results depend neither on the split into tasks nor on the
// number of threads. NaN or infinity in a row affects only the outputs of that row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu.h"
#include "linear_kernels.h"
#include "packed_file.h"
#include "pool.h"

namespace koe5 {

// Weights s8[k, n] in the order in which the kernels read them (see WeightView), with their scales and column sums.
class PackedWeight {
 public:
  struct Part {
    const int8_t* weight;  // s8[k, n of this part], row-major
    const float* scale;    // f32[n of this part]
    int64_t n;
  };

  // Packs parts side by side, such as Q, K and V as one weight, for products at `level`. (k, n) of each part must be
  // supported(). If `file` is not empty, maps the packed weights from this file, which is created if it is missing
  // (packed_file.h).
  PackedWeight(Level level, const Part* parts, int64_t count, int64_t k, const std::string& file = "");

  // With more than 65,536 inputs, a sum of u8 x s8 products could overflow int32.
  static bool supported(int64_t k, int64_t n) { return k > 0 && n > 0 && k % 4 == 0 && k <= 65536 && n % 16 == 0; }

  const WeightView& view() const { return view_; }

 private:
  Pages memory_;
  WeightView view_{};
};

// The layout of weights that are packed for `level`.
PackedLayout packed_layout(Level level);

// On Linux, releases the whole pages inside [data, data + bytes) if they are mapped from a file and unmodified. The
// next access reads them from the file again.
void release_mapped_pages(const void* data, size_t bytes);

struct Activations {
  const uint8_t* q;    // u8[rows, k]
  const float* scale;  // f32[rows]
  int64_t rows;
};

// out bf16[n / width, rows, width] = a @ w + bias, rounded to nearest even. n and width are multiples of 16.
void project(Level level, Pool& pool, const Activations& a, const PackedWeight& w, const float* bias, int64_t width,
             uint16_t* out);

// y f32[rows, n] = norm(x * skip + a @ w + bias) * gain + shift. out = y, rotated (rotation.h) and quantized to 8 bits.
// n is a multiple of 64.
void project_add_norm(Level level, Pool& pool, const Activations& a, const PackedWeight& w, const AddNorm& with,
                      float* y, const QuantizedOutput& out);

// out = GELU(a @ w + bias), of which each block of 64 values is multiplied by `factors` f32[64], rotated and quantized
// to 8 bits. n is a multiple of 64.
void project_gelu(Level level, Pool& pool, const Activations& a, const PackedWeight& w, const float* bias,
                  const float* factors, const QuantizedOutput& out);

}  // namespace koe5
