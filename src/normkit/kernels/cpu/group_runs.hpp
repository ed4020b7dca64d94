// Group norm where each group of a sample is a run of memory.

#pragma once

#include "call.hpp"

namespace normkit::NORMKIT_ISA {

// Whether a call of the group family is one: whole groups of planes, in the order (N, C, S), that fit the nearest caches.
bool are_group_runs(const Call& call);

void group_runs_forward(const Call& call);
// Without the gradients of the parameters, for which the sums of each sample's channels are left in gradient_sums.
void group_runs_backward(const Call& call);

}  // namespace normkit::NORMKIT_ISA
