// Row functions, compiled for NEON, which every 64-bit ARM CPU has.
#include "row_kernels_impl.h"

namespace koe5 {

extern const RowKernels kNeonRows = {norm_quantize_rows, quantize_heads, mean_of_rows, add_norm_quantize_rows,
                                     quantize_gelu_rows};

}  // namespace koe5
