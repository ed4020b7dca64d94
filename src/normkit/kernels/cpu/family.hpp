// The entry points of the instruction set that this is compiled for.

#pragma once

#include "call.hpp"

namespace normkit::NORMKIT_ISA {

int64_t channels_forward(const Call& call);
void channels_backward(const Call& call);
void groups_forward(const Call& call);
void groups_backward(const Call& call);
void rows_forward(const RowsCall& call);
void rows_backward(const RowsCall& call);
int64_t mixture_forward(const MixtureCall& call);
void mixture_backward(const MixtureCall& call);
void update_running(const RunningCall& call);

}  // namespace normkit::NORMKIT_ISA
