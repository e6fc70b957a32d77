// Selects the instruction set for this process.
#pragma once

namespace koe5 {

// In ascending order for x86-64, then for ARM: if a CPU supports two levels, the higher one is faster, except
// avx512_bf16 on Intel (cpu_x86.cc) and neon_i8mm on Apple's cores (cpu_arm.cc). A CPU need not support all levels
// below its highest.
enum class Level { none, avx2, avx_vnni, avx512_vnni, avx512_bf16, amx, neon_dotprod, neon_i8mm };

// Returns the level that this process uses. The default is the fastest that this CPU and operating system support.
// KOE5_ONNX_KERNELS_LEVEL selects another level, or the highest supported one below it.
Level cpu_level();

const char* level_name(Level level);

// Returns the reason in one line if cpu_level() is none; otherwise an empty string.
const char* why_unavailable();

}  // namespace koe5
