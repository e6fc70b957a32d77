// Linear layers of 8-bit integers with everything that follows them fused in. Knows nothing of ONNX Runtime.
//
// Activations are u8 with a scale per row: value = scale[row] * (u8 - kZeroPoint). Weights are s8 with a scale per
// column, packed once. Sums are exact in int32, so results depend neither on the split into tasks nor on the threads.
// Where a row holds NaN or infinity its own outputs do, and no other row's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu.h"
#include "linear_kernels.h"
#include "packed_file.h"
#include "pool.h"

namespace koe5 {

// Weights s8[k, n] in the order in which the kernels read them (see WeightView), with their scales and sums.
class PackedWeight {
 public:
  struct Part {
    const int8_t* weight;  // s8[k, n of this part], row-major
    const float* scale;    // f32[n of this part]
    int64_t n;
  };

  // Packs parts side by side (Q, K and V become one weight). Every (k, n) must be supported(). With the name of a file,
  // maps what that holds, and writes it where it is not there (packed_file.h).
  PackedWeight(const Part* parts, int64_t count, int64_t k, const std::string& file = "");

  // Beyond 65,536 products of u8 and s8 a sum could leave int32.
  static bool supported(int64_t k, int64_t n) { return k > 0 && n > 0 && k % 4 == 0 && k <= 65536 && n % 16 == 0; }

  const WeightView& view() const { return view_; }

 private:
  Pages memory_;
  WeightView view_{};
};

// Gives the whole pages inside [data, data + bytes) back to the system if they are mapped from a file and as in the file
// (Linux): they are read again from there if they are needed again.
void release_mapped_pages(const void* data, size_t bytes);

// Rows of 8-bit activations: u8[rows, k] with f32[rows].
struct Activations {
  const uint8_t* q;
  const float* scale;
  int64_t rows;
};

// out bf16[n / width, rows, width] = a @ w + bias, rounded to nearest even; n and width are multiples of 16.
void project(Level level, Pool& pool, const Activations& a, const PackedWeight& w, const float* bias, int64_t width,
             uint16_t* out);

// y f32[rows, n] = norm(x * skip + a @ w + bias) * gain + shift, and y in 8 bits, rotated (rotation.h); n is a multiple of
// 64.
void project_add_norm(Level level, Pool& pool, const Activations& a, const PackedWeight& w, const AddNorm& with,
                      float* y, const QuantizedOutput& out);

// out = GELU(a @ w + bias) in 8 bits, rotated; n is a multiple of 64.
void project_gelu(Level level, Pool& pool, const Activations& a, const PackedWeight& w, const float* bias,
                  const QuantizedOutput& out);

}  // namespace koe5
