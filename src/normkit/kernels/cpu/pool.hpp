// Memory of large outputs, kept for the next output instead of returned to the system.
//
// A fresh page costs several times the copy that fills it: the system clears it, 4 KB or 2 MB at a time, while the
// caller waits. Training asks for the same sizes step after step, so blocks that were given back serve again, the
// last one first, which the cache may still hold. The pool never holds more than outputs once filled at the same
// time: where it would, the oldest idle blocks go. (MADV_FREE on idle blocks was tried: it costs the huge pages.)

#pragma once

#include <cstdint>

namespace normkit {

// Outputs of at least so many bytes come from the pool; 0 where there is none (not Linux).
int64_t pooled_bytes();

// Uninitialized memory on huge pages where the system has them; throws std::bad_alloc. Any thread.
void* take_block(int64_t bytes);
void give_block(void* p, int64_t bytes);

// Returns all idle blocks to the system, and forgets how many were once in use; their bytes.
int64_t release_blocks();

}  // namespace normkit
