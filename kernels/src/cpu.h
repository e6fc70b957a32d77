// Selects the instruction set for this process.
#pragma once

namespace koe5 {

// If a CPU supports two levels, the higher one is faster, except avx512_bf16 on Intel (cpu_x86.cc) and neon_i8mm on
// Apple's cores (cpu_arm.cc). A CPU need not support all levels below its highest.
enum class Level { none, avx2, avx_vnni, avx512_vnni, avx512_bf16, amx, neon_dotprod, neon_i8mm };

// The fastest level of this CPU and operating system, or the one that KOE5_ONNX_KERNELS_LEVEL names, or the highest
// below it that the CPU supports. A CPU whose only level is avx2 uses it only if that variable is set. Detected once.
Level cpu_level();

// The enumerator's name.
const char* level_name(Level level);

// One line with the reason if cpu_level() is none; otherwise empty.
const char* why_unavailable();

}  // namespace koe5
