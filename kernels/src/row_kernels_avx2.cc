// Row functions, compiled for AVX2, FMA and F16C.
#include "row_kernels_impl.h"

namespace koe5 {

extern const RowKernels kAvx2Rows = {norm_quantize_rows, quantize_heads, mean_of_rows, add_norm_quantize_rows,
                                     quantize_gelu_rows};

}  // namespace koe5
