#include "cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace koe5 {
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return Registers{};
  return r;
}

bool all(unsigned value, unsigned mask) { return (value & mask) == mask; }

// Extended control register 0: which registers the operating system saves. Bits: Intel SDM, volume 1, section 13.3.
uint64_t saved_registers() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process tile data only when asked. Source: arch/x86/include/uapi/asm/prctl.h, XFEATURE_XTILEDATA.
bool ask_for_tiles() {
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

constexpr unsigned bit(int n) { return 1u << n; }

// Intel's vdpbf16ps takes two cycles of one port, fp32 FMA half a cycle of two: bf16 products are the slower ones there
// (measured; attention at 1 x 512 took 1.5 times as long).
bool is_intel() { return cpuid(0, 0).ebx == 0x756e6547; }  // "Genu"

// What this CPU has and the operating system saves.
struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, avx512_bf16 = false, amx = false;
};

// Feature bits: Intel SDM, volume 2, CPUID leaves 1 and 7.
Features detect() {
  constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;
  constexpr unsigned kAvx512 = bit(16) | bit(17) | bit(30) | bit(31);  // F, DQ, BW, VL
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const bool saves_registers = all(one.ecx, bit(27));
  Features has;
  if (!saves_registers || !all(one.ecx, bit(12) | bit(28) | bit(29))) return has;  // FMA, AVX, F16C
  const uint64_t saved = saved_registers();
  const auto saves = [&](uint64_t state) { return (saved & state) == state; };
  has.avx2 = all(seven.ebx, bit(5)) && saves(kAvxState);
  has.avx_vnni = has.avx2 && all(seven_one.eax, bit(4));
  has.avx512_vnni = has.avx2 && all(seven.ebx, kAvx512) && all(seven.ecx, bit(11)) && saves(kAvx512State);
  has.avx512_bf16 = has.avx512_vnni && all(seven_one.eax, bit(5));
  const bool tiles = all(seven.edx, bit(22) | bit(24) | bit(25)) && saves(kTileState);
  has.amx = has.avx512_bf16 && tiles && ask_for_tiles();
  return has;
}

constexpr Level kLevels[] = {Level::amx,  Level::avx512_bf16, Level::avx512_vnni, Level::avx_vnni,
                             Level::avx2, Level::none};

bool has_level(const Features& has, Level level) {
  switch (level) {
    case Level::amx: return has.amx;
    case Level::avx512_bf16: return has.avx512_bf16;
    case Level::avx512_vnni: return has.avx512_vnni;
    case Level::avx_vnni: return has.avx_vnni;
    case Level::avx2: return has.avx2;
    default: return true;
  }
}

// The highest level of this CPU that is not above `most`.
Level best_level(const Features& has, Level most) {
  for (const Level level : kLevels) {
    if (level <= most && has_level(has, level)) return level;
  }
  return Level::none;
}

Level fastest_level(const Features& has) {
  if (has.amx) return Level::amx;
  return best_level(has, is_intel() ? Level::avx512_vnni : Level::avx512_bf16);
}

bool parse(const std::string& name, Level* level) {
  for (const Level each : kLevels) {
    if (name == level_name(each)) {
      *level = each;
      return true;
    }
  }
  return false;
}

struct Decision {
  Level level;
  std::string reason;
};

constexpr const char* kSlowerThanStock =
    "this CPU has AVX2 and no VNNI: ONNX Runtime's own operators are faster there, but their sums may saturate; "
    "KOE5_ONNX_KERNELS_LEVEL=avx2 runs the fused kernels, whose sums are exact";

Decision decide() {
  const Features has = detect();
  const Level fastest = fastest_level(has);
  if (fastest == Level::none) return {fastest, "this CPU or operating system lacks AVX2 with FMA and F16C"};
  const char* asked = std::getenv("KOE5_ONNX_KERNELS_LEVEL");
  if (asked == nullptr || *asked == '\0') {
    // Exact sums need four instructions there where ONNX Runtime's, which may saturate, need three.
    if (fastest == Level::avx2) return {Level::none, kSlowerThanStock};
    return {fastest, ""};
  }
  Level wanted = fastest;
  if (!parse(asked, &wanted)) {
    return {Level::none, std::string("KOE5_ONNX_KERNELS_LEVEL is '") + asked +
                             "': expected amx, avx512_bf16, avx512_vnni, avx_vnni, avx2 or none"};
  }
  const Level level = wanted < fastest ? best_level(has, wanted) : fastest;
  return {level, level == Level::none ? "KOE5_ONNX_KERNELS_LEVEL is none" : ""};
}

const Decision& decision() {
  static const Decision decided = decide();
  return decided;
}

}  // namespace

Level cpu_level() { return decision().level; }

const char* level_name(Level level) {
  switch (level) {
    case Level::amx: return "amx";
    case Level::avx512_bf16: return "avx512_bf16";
    case Level::avx512_vnni: return "avx512_vnni";
    case Level::avx_vnni: return "avx_vnni";
    case Level::avx2: return "avx2";
    default: return "none";
  }
}

const char* why_unavailable() { return decision().reason.c_str(); }

}  // namespace koe5
