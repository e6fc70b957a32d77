// Which of the kernels' instruction sets this process may use.
#pragma once

namespace koe5 {

// A higher level is the faster one where a CPU has both; it need not have all that are lower.
enum class Level { none, avx2, avx_vnni, avx512_vnni, avx512_bf16, amx };

// The best level of this CPU and operating system, lowered by KOE5_ONNX_KERNELS_LEVEL if that is set; avx2 only if that
// is set. Found once.
Level cpu_level();

// The level's name, as it stands above.
const char* level_name(Level level);

// Why cpu_level() is none, in one line; empty where it is not.
const char* why_unavailable();

}  // namespace koe5
