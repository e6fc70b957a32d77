// Interface between cpu.cc, which selects a level, and cpu_x86.cc and cpu_arm.cc, which detect the supported levels.
#pragma once

#include <vector>

#include "cpu.h"

namespace koe5 {

struct Detected {
  Level fastest;       // or none
  const char* reason;  // why `fastest` is none; otherwise empty
  struct Candidate {
    Level level;
    bool supported;
  };
  std::vector<Candidate> levels{};  // of this architecture, highest first
};

Detected detect_levels();

}  // namespace koe5
