// Levels of 64-bit ARM CPUs.
#include <sys/auxv.h>

#include <cstdint>

#include "cpu_detection.h"

namespace koe5 {
namespace {

// Feature bits. Defined here because the C library's headers may be older. Source: Linux,
// arch/arm64/include/uapi/asm/hwcap.h.
constexpr unsigned long kCpuid = 1ul << 11, kDotProducts = 1ul << 20;  // AT_HWCAP
constexpr unsigned long kI8mm = 1ul << 13, kBf16 = 1ul << 14;          // AT_HWCAP2

bool all(unsigned long value, unsigned long mask) { return (value & mask) == mask; }

// Returns true on Apple's cores, on which SMMLA is not faster than SDOT: it is as fast on M3 Pro
// (https://github.com/robertknight/rten/pull/827) and 10 to 25 % slower on M3 Max
// (https://github.com/JustVugg/colibri/issues/136). On Neoverse V2, it is 1.7 times as fast. Reads only the implementer
// of the core, because virtual machines hide the part number.
bool is_apple(unsigned long features) {
  if (!all(features, kCpuid)) return false;
  uint64_t identity = 0;
  __asm__("mrs %0, midr_el1" : "=r"(identity));
  return (identity >> 24 & 0xff) == 0x61;
}

}  // namespace

Detected detect_levels() {
  const unsigned long features = getauxval(AT_HWCAP);
  const bool dotprod = all(features, kDotProducts);
  // neon_i8mm uses instructions of both extensions. All known CPUs have both or neither, so no level uses only one.
  const bool i8mm = dotprod && all(getauxval(AT_HWCAP2), kI8mm | kBf16);
  const Level fastest = i8mm && !is_apple(features) ? Level::neon_i8mm : Level::neon_dotprod;
  return {dotprod ? fastest : Level::none,
          dotprod ? "" : "this CPU lacks dot product instructions (asimddp)",
          {{Level::neon_i8mm, i8mm}, {Level::neon_dotprod, dotprod}}};
}

}  // namespace koe5
