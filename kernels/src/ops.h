// The operators of domain koe5, each defined in its own file. register.cc registers them.
#pragma once

#include "op.h"

namespace koe5 {

extern const OpDefinition kNormQuantize;
extern const OpDefinition kProjectQkv, kProjectAddNorm, kProjectGelu;
extern const OpDefinition kRaggedAttention;
extern const OpDefinition kPoolMean;

}  // namespace koe5
