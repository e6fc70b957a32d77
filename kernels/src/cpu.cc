#include "cpu.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "cpu_detection.h"

namespace koe5 {
namespace {

struct Decision {
  Level level;
  std::string reason;
};

Decision unknown_level(const Detected& found, const std::string& name) {
  std::string expected;
  for (const Detected::Candidate& each : found.levels) {
    expected += (expected.empty() ? "" : ", ") + std::string(level_name(each.level));
  }
  return {Level::none, "KOE5_ONNX_KERNELS_LEVEL is '" + name + "', expected " + expected + " or none"};
}

// Returns the level with this name, or the highest below it that the CPU supports.
Decision at_most(const Detected& found, const std::string& name) {
  bool reached = false;
  for (const Detected::Candidate& each : found.levels) {
    reached = reached || name == level_name(each.level);
    if (reached && each.supported) return {each.level, ""};
  }
  if (name == "none") return {Level::none, "KOE5_ONNX_KERNELS_LEVEL is none"};
  return unknown_level(found, name);
}

Decision decide() {
  const Detected found = detect_levels();
  const bool usable =
      std::any_of(found.levels.begin(), found.levels.end(), [](const auto& each) { return each.supported; });
  const char* asked = std::getenv("KOE5_ONNX_KERNELS_LEVEL");
  if (usable && asked != nullptr && *asked != '\0') return at_most(found, asked);
  return {found.fastest, found.reason};
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
    case Level::neon_i8mm: return "neon_i8mm";
    case Level::neon_dotprod: return "neon_dotprod";
    default: return "none";
  }
}

const char* why_unavailable() { return decision().reason.c_str(); }

}  // namespace koe5
