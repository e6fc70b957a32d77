// Splits linear layers into tasks. Results never depend on the split: sums are exact, and operations on a whole row
// (largest value, layer norm) run on complete rows.
#include "linear.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <type_traits>

#include "row_kernels.h"
#include "thread_scratch.h"

namespace koe5 {
namespace {

constexpr int64_t kColumnUnit = 64;
// Rows per task that only finishes complete rows, such as by a layer norm.
constexpr int64_t kRowsPerTask = 8;

const LinearKernels& kernels_of(Level level) {
#if defined(__aarch64__)
  return level == Level::neon_i8mm ? kI8mmKernels : kDotprodKernels;
#else
  if (level == Level::amx) return kAmxKernels;
  if (level >= Level::avx512_vnni) return kVnniKernels;
  return level == Level::avx_vnni ? kAvxVnniKernels : kAvx2Kernels;
#endif
}

// Separate memory for matrix products and for rows that are not complete, because both are in use at the same time.
thread_local ThreadScratch kernel_scratch, row_scratch;

char* required(ThreadScratch& scratch, int64_t bytes) {
  char* const memory = scratch.at_least(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// Splits rows into blocks of whole register tiles, as evenly as possible.
struct Blocks {
  int64_t rows, tile, count;

  Blocks(int64_t rows_, int64_t tile_, int64_t wanted) : rows(rows_), tile(tile_), count(std::min(wanted, tiles())) {}
  int64_t tiles() const { return ceil_div(rows, tile); }
  int64_t begin(int64_t block) const { return std::min(rows, tiles() * block / count * tile); }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
};

// Blocks of rows and groups of columns, with one task per block and group.
struct Grid {
  Blocks blocks;
  int64_t groups, group_columns;
};

Grid grid_of(const LinearKernels& kernels, int threads, int64_t rows, const WeightView& w) {
  const int64_t units = ceil_div(w.n, kColumnUnit);
  int64_t blocks = ceil_div(rows, kernels.most_rows(w.k)), groups = 1;
  // Split columns first, so that each task reads fewer weights. Split rows if tasks would otherwise have fewer than 8 x
  // 64 columns, because on some levels each task also copies its rows.
  while (blocks * groups < threads) {
    if (units / (groups + 1) >= 8 || rows / (blocks + 1) < kernels.fewest_rows) {
      if (++groups >= units) break;
    } else {
      ++blocks;
    }
  }
  while (groups < units && blocks * groups % threads != 0 && blocks * groups < 4 * threads) ++groups;
  const int64_t group_columns = ceil_div(units, groups) * kColumnUnit;
  return {Blocks(rows, kernels.tile_rows, blocks), ceil_div(w.n, group_columns), group_columns};
}

Product product_of(const Activations& a, const WeightView& w, int64_t first_row, int64_t rows, int64_t first,
                   int64_t last) {
  return {a.q + first_row * w.k, a.scale + first_row, rows, w, first, last};
}

template <class Store>
Store from_row(Store store, int64_t row) {
  store.out += row * store.width;
  return store;
}

template <class Store>
using Multiply = void (*)(const Product&, const Store&, void*);

// Runs tasks that may fail to allocate memory. Exceptions must not leave a task.
template <class F>
void run_tasks(Pool& pool, int64_t n, const F& task) {
  std::atomic<bool> exhausted{false};
  pool.parallel_for(n, [&](int64_t index) {
    try {
      task(index);
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
  });
  if (exhausted) throw std::bad_alloc();
}

template <class Store>
void multiply_grid(const LinearKernels& kernels, Multiply<Store> multiply, Pool& pool, const Activations& a,
                   const WeightView& w, const Store& store) {
  const Grid grid = grid_of(kernels, pool.threads(), a.rows, w);
  run_tasks(pool, grid.blocks.count * grid.groups, [&](int64_t task) {
    const int64_t block = task % grid.blocks.count, row = grid.blocks.begin(block), rows = grid.blocks.size(block);
    const int64_t first = task / grid.blocks.count * grid.group_columns;
    const int64_t last = std::min(first + grid.group_columns, w.n);
    multiply(product_of(a, w, row, rows, first, last), from_row(store, row),
             required(kernel_scratch, kernels.scratch_bytes(rows, w.k)));
  });
}

QuantizedOutput from_row(const QuantizedOutput& out, int64_t row, int64_t n) {
  return {out.q + row * n, out.scale + row};
}

// Returns panels in the calling thread's memory, for values that are kept until their row is complete.
template <class Store>
Store panels_of(const float* bias, int64_t rows, int64_t n) {
  using Value = std::remove_pointer_t<decltype(Store::out)>;
  const int64_t values = rows * ceil_div(n, kPanelColumns) * kPanelColumns;
  Store store;
  store.bias = bias;
  store.out = reinterpret_cast<Value*>(required(row_scratch, values * static_cast<int64_t>(sizeof(Value))));
  store.rows = rows;
  store.width = kPanelColumns;
  return store;
}

// Returns blocks of rows for tasks that compute all columns, or no blocks if there are too few rows for all threads.
Blocks whole_rows(const LinearKernels& kernels, int threads, int64_t rows, int64_t most_rows) {
  if (rows < threads * kernels.fewest_rows) return {rows, kernels.tile_rows, 0};
  return {rows, kernels.tile_rows, ceil_div(rows, threads * most_rows) * threads};
}

// Computes a @ w + bias in panels and calls finish(values from `row` on, row, number of rows) for complete rows.
// Limits the rows per task, so that rows of `width` values (inputs or outputs) fit in L2.
template <class Store, class Finish>
void multiply_rows(const LinearKernels& kernels, Multiply<Store> multiply, Pool& pool, const Activations& a,
                   const WeightView& w, const float* bias, int64_t width, const Finish& finish) {
  const Blocks blocks = whole_rows(kernels, pool.threads(), a.rows, kernels.most_rows(width));
  if (blocks.count > 0) {
    run_tasks(pool, blocks.count, [&](int64_t block) {
      const int64_t row = blocks.begin(block), rows = blocks.size(block);
      const Store values = panels_of<Store>(bias, rows, w.n);
      multiply(product_of(a, w, row, rows, 0, w.n), values, required(kernel_scratch, kernels.scratch_bytes(rows, w.k)));
      finish(values, row, rows);
    });
    return;
  }
  const Store values = panels_of<Store>(bias, a.rows, w.n);
  multiply_grid(kernels, multiply, pool, a, w, values);
  pool.parallel_for(ceil_div(a.rows, kRowsPerTask), [&](int64_t task) {
    const int64_t row = task * kRowsPerTask;
    finish(from_row(values, row), row, std::min(kRowsPerTask, a.rows - row));
  });
}

}  // namespace

void project(Level level, Pool& pool, const Activations& a, const PackedWeight& weight, const float* bias,
             int64_t width, uint16_t* out) {
  const WeightView& w = weight.view();
  if (a.rows == 0) return;
  const LinearKernels& kernels = kernels_of(level);
  multiply_grid(kernels, kernels.bf16, pool, a, w, StoreBf16{{bias, out, a.rows, width}});
}

void project_add_norm(Level level, Pool& pool, const Activations& a, const PackedWeight& weight, const AddNorm& with,
                      float* y, const QuantizedOutput& out) {
  const WeightView& w = weight.view();
  if (a.rows == 0) return;
  const LinearKernels& kernels = kernels_of(level);
  const auto add_norm_quantize = row_kernels(level).add_norm_quantize;
  const auto finish = [&](const StoreSums& sums, int64_t row, int64_t rows) {
    AddNorm from_here = with;
    from_here.x += row * w.n;
    add_norm_quantize(sums, rows, w.n, from_here, y + row * w.n, from_row(out, row, w.n));
  };
  multiply_rows(kernels, kernels.sums, pool, a, w, with.bias, w.k, finish);
}

void project_gelu(Level level, Pool& pool, const Activations& a, const PackedWeight& weight, const float* bias,
                  const float* factors, const QuantizedOutput& out) {
  const WeightView& w = weight.view();
  if (a.rows == 0) return;
  const LinearKernels& kernels = kernels_of(level);
  const auto quantize_gelu = row_kernels(level).quantize_gelu;
  const auto finish = [&](const StoreGelu& values, int64_t row, int64_t rows) {
    quantize_gelu(values, rows, w.n, factors, from_row(out, row, w.n));
  };
  multiply_rows(kernels, kernels.gelu, pool, a, w, bias, w.n, finish);
}

}  // namespace koe5
