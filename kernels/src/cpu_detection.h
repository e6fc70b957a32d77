// Interface between cpu.cc, which selects a level, and the detection for each architecture.
#pragma once

#include <vector>

#include "cpu.h"

namespace koe5 {

struct Detected {
  Level fastest;       // or none
  const char* reason;  // if `fastest` is none
  struct Candidate {
    Level level;
    bool supported;
  };
  std::vector<Candidate> levels{};  // of this architecture, highest first
};

Detected detect_levels();

}  // namespace koe5
