// Sizes, of caches too, and scratch memory.

#pragma once

#include <cstddef>
#include <cstdint>

namespace normkit {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes in bytes, asked of the system once.
struct Caches {
    int64_t l2;    // of one core
    int64_t last;  // shared by all
};
const Caches& caches();

// Whether an output will not be found in the cache by whoever reads it next: whether so many bytes, its own and those
// of the tensors that are in use with it, are more than the cache.
bool leaves_cache(int64_t bytes);

// Uninitialized memory, aligned to a cache line, freed at the end of the scope.
class Scratch {
   public:
    explicit Scratch(int64_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class E>
    E* as() const {
        return static_cast<E*>(data_);
    }

   private:
    void* data_;
};

}  // namespace normkit
