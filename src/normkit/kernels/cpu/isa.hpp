// Which instruction sets this extension was built for, which of them the processor runs, and the choice.

#pragma once

#include <string>
#include <vector>

#include "call.hpp"

namespace normkit {

// The kernels that the processor can run, widest first.
std::vector<const Kernels*> available_kernels();

// The widest, or the one of the given name; throws std::invalid_argument for a name that is not available.
const Kernels& choose_kernels(const char* name);

}  // namespace normkit
