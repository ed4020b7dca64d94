// The table of one instruction set. Compiled once per instruction set.

#include "family.hpp"

namespace normkit::NORMKIT_ISA {

#define NORMKIT_TEXT(name) #name
#define NORMKIT_NAME(name) NORMKIT_TEXT(name)

extern const Kernels kernels;
const Kernels kernels = {NORMKIT_NAME(NORMKIT_ISA), channels_forward, channels_backward, groups_forward,
                         groups_backward,           rows_forward,     rows_backward,     mixture_forward,
                         mixture_backward,          update_running};

}  // namespace normkit::NORMKIT_ISA
