#include "family.hpp"
namespace normkit::NORMKIT_ISA {
void rows_forward(const RowsCall&) {}
void rows_backward(const RowsCall&) {}
}
