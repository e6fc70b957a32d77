// Row functions, compiled for AVX512 F, BW, DQ and VL.
#include "row_kernels_impl.h"

namespace koe5 {

extern const RowKernels kAvx512Rows = {norm_quantize_rows, quantize_heads, mean_of_rows, add_norm_quantize_rows,
                                     quantize_gelu_rows};

}  // namespace koe5
