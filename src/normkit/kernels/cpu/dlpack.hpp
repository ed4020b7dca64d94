// A block of the pool as a tensor that torch adopts, by the DLPack protocol (version 0, which every torch reads).

#pragma once

#include <cstdint>

#include "call.hpp"

namespace normkit {

constexpr int kMostAxes = 8;

// Laid out by the protocol.
struct ManagedTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t type_code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;  // in elements
    uint64_t byte_offset;
    void* context;
    void (*deleter)(ManagedTensor*);
};

// Uninitialized; whoever adopts it calls its deleter, from any thread.
ManagedTensor* pooled_tensor(DType dtype, int ndim, const int64_t* shape, const int64_t* strides);

}  // namespace normkit
