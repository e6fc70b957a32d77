// Measures the speed of the fused linear layers without ONNX Runtime.
//
//   cmake -S kernels -B build/kernels -G Ninja && cmake --build build/kernels --target linear_bench
//   build/kernels/linear_bench [--threads N] [--level amx|avx512_vnni|avx_vnni|avx2] [--rows 16,32,...] [--shape TEXT]
//                              [--seconds S] [--hot]
//
// Prints one line per linear layer and number of rows: median and best milliseconds, giga-operations per second (a
// product and a sum count as two), percentage of the ceiling, and weights read in GB/s. The ceiling is the rate of the
// level's multiply instructions without memory access, measured with the same threads in the same run. Without --hot,
// calls cycle through 192 MiB of weights, most of which are thus not in cache, as in a model.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../src/linear.h"

namespace {

using koe5::Level;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Threads that spin while they wait for tasks, like those of ONNX Runtime.
class ThreadPool final : public koe5::Pool {
 public:
  explicit ThreadPool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~ThreadPool() override {
    stop_ = true;
    for (std::thread& worker : workers_) worker.join();
  }
  int threads() const override { return threads_; }
  void run(int64_t n, void (*task)(void*, int64_t), void* context) override {
    task_ = task, context_ = context, n_ = n;
    next_ = 0, busy_ = threads_ - 1;
    ++round_;
    claim();
    while (busy_ != 0) _mm_pause();
  }

 private:
  void claim() {
    for (int64_t i = next_++; i < n_; i = next_++) task_(context_, i);
  }
  void work() {
    for (int seen = 0; !stop_;) {
      if (round_ == seen) {
        _mm_pause();
        continue;
      }
      ++seen;
      claim();
      --busy_;
    }
  }

  const int threads_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stop_{false};
  std::atomic<int> round_{0}, busy_{0};
  std::atomic<int64_t> next_{0};
  int64_t n_ = 0;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
};

// Runs VPDPBUSD 1,000 times on each of twelve independent sums.
__attribute__((target("avx512f,avx512vnni"))) void vnni_alone() {
  for (int i = 0; i < 1000; ++i) {
    asm volatile(
        "vpdpbusd %%zmm0, %%zmm0, %%zmm1\n vpdpbusd %%zmm0, %%zmm0, %%zmm2\n vpdpbusd %%zmm0, %%zmm0, %%zmm3\n"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm4\n vpdpbusd %%zmm0, %%zmm0, %%zmm5\n vpdpbusd %%zmm0, %%zmm0, %%zmm6\n"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm7\n vpdpbusd %%zmm0, %%zmm0, %%zmm8\n vpdpbusd %%zmm0, %%zmm0, %%zmm9\n"
        "vpdpbusd %%zmm0, %%zmm0, %%zmm10\n vpdpbusd %%zmm0, %%zmm0, %%zmm11\n vpdpbusd %%zmm0, %%zmm0, %%zmm12\n" ::
            : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12");
  }
}

// Like vnni_alone, but on 256-bit registers.
__attribute__((target("avx2,avxvnni"))) void avx_vnni_alone() {
  for (int i = 0; i < 1000; ++i) {
    asm volatile(
        "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm1\n %{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm2\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm3\n %{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm4\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm5\n %{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm6\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm7\n %{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm8\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm9\n %{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm10\n"
        "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm11\n %{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm12\n" ::
            : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12");
  }
}

// Runs six triples of VPMADDUBSW, VPMADDWD and VPADDD 1,000 times; each triple computes 32 products.
__attribute__((target("avx2"))) void avx2_alone() {
  for (int i = 0; i < 1000; ++i) {
    asm volatile(
        "vpmaddubsw %%ymm0, %%ymm0, %%ymm1\n vpmaddwd %%ymm0, %%ymm1, %%ymm1\n"
        "vpaddd %%ymm1, %%ymm7, %%ymm7\n"
        "vpmaddubsw %%ymm0, %%ymm0, %%ymm2\n vpmaddwd %%ymm0, %%ymm2, %%ymm2\n"
        "vpaddd %%ymm2, %%ymm8, %%ymm8\n"
        "vpmaddubsw %%ymm0, %%ymm0, %%ymm3\n vpmaddwd %%ymm0, %%ymm3, %%ymm3\n"
        "vpaddd %%ymm3, %%ymm9, %%ymm9\n"
        "vpmaddubsw %%ymm0, %%ymm0, %%ymm4\n vpmaddwd %%ymm0, %%ymm4, %%ymm4\n"
        "vpaddd %%ymm4, %%ymm10, %%ymm10\n"
        "vpmaddubsw %%ymm0, %%ymm0, %%ymm5\n vpmaddwd %%ymm0, %%ymm5, %%ymm5\n"
        "vpaddd %%ymm5, %%ymm11, %%ymm11\n"
        "vpmaddubsw %%ymm0, %%ymm0, %%ymm6\n vpmaddwd %%ymm0, %%ymm6, %%ymm6\n"
        "vpaddd %%ymm6, %%ymm12, %%ymm12\n" ::
            : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12");
  }
}

__attribute__((target("amx-tile,amx-int8"))) void amx_alone() {
  struct alignas(64) Config {
    uint8_t palette = 1, rest[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static const Config config;
  _tile_loadconfig(&config);
  for (int i = 0; i < 1000; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
}

struct Alone {
  void (*run)();
  double operations;
};

Alone alone_at(Level level) {
  if (level == Level::amx) return {amx_alone, 4000.0 * 16 * 16 * 64 * 2};
  if (level == Level::avx512_vnni) return {vnni_alone, 12000.0 * 64 * 2};
  return level == Level::avx_vnni ? Alone{avx_vnni_alone, 12000.0 * 32 * 2} : Alone{avx2_alone, 6000.0 * 32 * 2};
}

// Returns the operations per second of all threads, the best of ten measurements.
double ceiling(Level level, ThreadPool& pool) {
  const Alone alone = alone_at(level);
  double best = 1e9;
  for (int i = 0; i < 10; ++i) {
    const double start = now();
    pool.parallel_for(100 * pool.threads(), [&](int64_t) { alone.run(); });
    best = std::min(best, now() - start);
  }
  return alone.operations * 100 * pool.threads() / best;
}

struct Options {
  int threads = 2;
  std::vector<int64_t> rows{16, 32, 48, 128, 256, 512, 2048};
  double seconds = 0.5;
  bool hot = false;
};

struct Shape {
  const char* name;
  enum Kind { qkv, add_norm, gelu } kind;
  int64_t k, n;
};

constexpr Shape kShapes[] = {
    {"ProjectQkv     1024 -> 3x1024", Shape::qkv, 1024, 3072},
    {"ProjectAddNorm 1024 -> 1024  ", Shape::add_norm, 1024, 1024},
    {"ProjectGelu    1024 -> 4096  ", Shape::gelu, 1024, 4096},
    {"ProjectAddNorm 4096 -> 1024  ", Shape::add_norm, 4096, 1024},
    {"ProjectQkv      384 -> 3x384 ", Shape::qkv, 384, 1152},
    {"ProjectGelu     384 -> 1536  ", Shape::gelu, 384, 1536},
    {"ProjectAddNorm 1536 -> 384   ", Shape::add_norm, 1536, 384},
};

// The mean of four bytes: nearly normal with a standard deviation of 37, as in weights of rotated layers.
int8_t mean_of_bytes(uint32_t four) {
  four = (four ^ four >> 15) * 0x9e3779b1u;
  four ^= four >> 13;
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(four >> 8 * i);
  return static_cast<int8_t>(sum / 4);
}

// Inputs, outputs and weights of one shape.
class Work {
 public:
  Work(Level level, const Shape& shape, int64_t rows, bool hot)
      : shape_(shape), rows_(rows), a_(rows * shape.k), q_(rows * shape.n), bf16_(rows * shape.n), scale_(rows, 0.01f),
        out_scale_(rows), x_(rows * shape.n, 0.5f), y_(rows * shape.n), column_(shape.n, 0.01f) {
    for (size_t i = 0; i < a_.size(); ++i) a_[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
    std::vector<int8_t> weight(shape.k * shape.n);
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = mean_of_bytes(static_cast<uint32_t>(i) * 2246822519u);
    const koe5::PackedWeight::Part part{weight.data(), column_.data(), shape.n};
    const int64_t copies = hot ? 1 : (int64_t{192} << 20) / (shape.k * shape.n);
    for (int64_t i = 0; i < copies; ++i) weights_.emplace_back(level, &part, 1, shape.k);
  }

  void run(Level level, koe5::Pool& pool) {
    const koe5::PackedWeight& weight = weights_[++turn_ % weights_.size()];
    const koe5::Activations a{a_.data(), scale_.data(), rows_};
    const float* const c = column_.data();
    const koe5::QuantizedOutput out{q_.data(), out_scale_.data()};
    if (shape_.kind == Shape::qkv) koe5::project(level, pool, a, weight, c, shape_.k < 1024 ? 32 : 64, bf16_.data());
    if (shape_.kind == Shape::gelu) koe5::project_gelu(level, pool, a, weight, c, c, out);
    if (shape_.kind == Shape::add_norm) {
      koe5::project_add_norm(level, pool, a, weight, {x_.data(), c, c, c, c, 1e-5f}, y_.data(), out);
    }
  }

 private:
  const Shape& shape_;
  int64_t rows_;
  std::vector<uint8_t> a_, q_;
  std::vector<uint16_t> bf16_;
  std::vector<float> scale_, out_scale_, x_, y_, column_;
  std::vector<koe5::PackedWeight> weights_;
  size_t turn_ = 0;
};

void measure(const Shape& shape, Level level, const Options& options, ThreadPool& pool, double peak) {
  for (const int64_t rows : options.rows) {
    Work work(level, shape, rows, options.hot);
    std::vector<double> times;
    work.run(level, pool);
    for (const double start = now(); now() - start < options.seconds;) {
      const double before = now();
      work.run(level, pool);
      times.push_back(now() - before);
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const double operations = 2.0 * static_cast<double>(rows * shape.k * shape.n);
    std::printf("%s %-11s threads %d rows %4ld: %7.3f ms (best %7.3f) %6.0f GOP/s %4.1f %% of ceiling, %5.1f GB/s\n",
                shape.name, koe5::level_name(level), options.threads, static_cast<long>(rows), median * 1e3,
                times[0] * 1e3, operations / median / 1e9, 100 * operations / median / peak,
                static_cast<double>(shape.k * shape.n) / median / 1e9);
    std::fflush(stdout);
  }
}

std::vector<int64_t> numbers(const char* text) {
  std::vector<int64_t> out;
  for (const char* at = text; *at != 0;) {
    char* end = nullptr;
    out.push_back(std::strtol(at, &end, 10));
    at = *end == ',' ? end + 1 : end;
  }
  return out;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  std::string only;
  std::string shapes;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const char* const value = i + 1 < count ? arguments[i + 1] : "";
    if (name == "--hot") options.hot = true;
    if (name == "--threads") options.threads = std::atoi(value);
    if (name == "--rows") options.rows = numbers(value);
    if (name == "--seconds") options.seconds = std::atof(value);
    if (name == "--level") only = value;
    if (name == "--shape") shapes = value;
  }
  if (koe5::cpu_level() == Level::none) {
    std::fprintf(stderr, "%s\n", koe5::why_unavailable());
    return 1;
  }
  ThreadPool pool(options.threads);
  for (const Level level : {Level::avx2, Level::avx_vnni, Level::avx512_vnni, Level::amx}) {
    if (koe5::cpu_level() < level || (!only.empty() && only != koe5::level_name(level))) continue;
    const double peak = ceiling(level, pool);
    std::printf("%s, %d threads: ceiling %.0f GOP/s\n", koe5::level_name(level), options.threads, peak / 1e9);
    for (const Shape& shape : kShapes) {
      if (shapes.empty() || std::strstr(shape.name, shapes.c_str()) != nullptr) {
        measure(shape, level, options, pool, peak);
      }
    }
  }
  return 0;
}
