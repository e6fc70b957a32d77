// Which of the kernels' instruction sets this process may use.
#pragma once

namespace koe5 {

enum class Level { none = 0, avx512_vnni = 1, avx512_bf16 = 2, amx = 3 };

// The best level of this CPU and operating system, lowered by KOE5_ONNX_KERNELS_LEVEL if that is set. Found once.
Level cpu_level();

// "none", "avx512_vnni", "avx512_bf16" or "amx".
const char* level_name(Level level);

// Why cpu_level() is none, in one line; empty where it is not.
const char* why_unavailable();

}  // namespace koe5
