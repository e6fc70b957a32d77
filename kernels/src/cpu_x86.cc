// Levels of x86-64 CPUs.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "cpu_detection.h"

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

// Reads extended control register 0, whose bits say which registers the operating system saves. Source: Intel SDM,
// volume 1, section 13.3.
uint64_t saved_registers() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux enables AMX only on request. Source: arch/x86/include/uapi/asm/prctl.h, XFEATURE_XTILEDATA.
bool ask_for_tiles() {
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

constexpr unsigned bit(int n) { return 1u << n; }

// On Intel, bf16 products are slower than fp32 products: attention on one text of 512 tokens took 1.5 times as long
// (measured). An Intel core executes one VDPBF16PS per two cycles, but two fp32 FMAs per cycle.
bool is_intel() { return cpuid(0, 0).ebx == 0x756e6547; }  // "Genu"

// Features that the CPU has and whose registers the operating system saves.
struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, avx512_bf16 = false, amx = false;
};

// Source of the feature bits: Intel SDM, volume 2, CPUID leaves 1 and 7.
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

Detected choose(const Features& has) {
  if (has.amx) return {Level::amx, ""};
  if (has.avx512_bf16 && !is_intel()) return {Level::avx512_bf16, ""};
  if (has.avx512_vnni) return {Level::avx512_vnni, ""};
  if (has.avx_vnni) return {Level::avx_vnni, ""};
  if (has.avx2) return {Level::avx2, ""};
  return {Level::none, "this CPU or operating system lacks AVX2 with FMA and F16C"};
}

}  // namespace

Detected detect_levels() {
  const Features has = detect();
  Detected found = choose(has);
  found.levels = {{Level::amx, has.amx},
                  {Level::avx512_bf16, has.avx512_bf16},
                  {Level::avx512_vnni, has.avx512_vnni},
                  {Level::avx_vnni, has.avx_vnni},
                  {Level::avx2, has.avx2}};
  return found;
}

}  // namespace koe5
