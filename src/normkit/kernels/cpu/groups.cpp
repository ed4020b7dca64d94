#include "family.hpp"
namespace normkit::NORMKIT_ISA {
void groups_forward(const Call&) {}
void groups_backward(const Call&) {}
}
