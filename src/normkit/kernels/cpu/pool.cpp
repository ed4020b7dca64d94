#include "pool.hpp"

#if defined(__linux__)

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <mutex>
#include <new>

namespace normkit {

namespace {

constexpr int64_t kHugePage = 2 << 20;

// Sizes in eighths of a power of two, at least a huge page: a block serves every output of its class.
int64_t class_of(int64_t bytes) {
    int64_t step = kHugePage;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

void* map(int64_t bytes) {
    const size_t all = size_t(bytes + kHugePage);
    void* start = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t first = uintptr_t(start), aligned = (first + kHugePage - 1) & ~uintptr_t(kHugePage - 1);
    if (aligned > first) munmap(start, aligned - first);
    const uintptr_t end = aligned + size_t(bytes), last = first + all;
    if (last > end) munmap(reinterpret_cast<void*>(end), last - end);
    void* p = reinterpret_cast<void*>(aligned);
    madvise(p, size_t(bytes), MADV_HUGEPAGE);  // advice: a refusal changes nothing
    return p;
}

class Pool {
   public:
    void* take(int64_t bytes) {
        const int64_t size = class_of(bytes);
        const std::lock_guard<std::mutex> guard(mutex_);
        live_ += size;
        const auto same = std::find_if(idle_.rbegin(), idle_.rend(), [&](const Block& b) { return b.size == size; });
        if (same != idle_.rend()) {
            void* p = same->data;
            idle_.erase(std::next(same).base());
            return p;
        }
        most_ = std::max(most_, live_);
        while (mapped_ + size > most_ && !idle_.empty()) drop_oldest();
        void* p = map(size);
        mapped_ += size;
        return p;
    }
    void give(void* p, int64_t bytes) {
        const std::lock_guard<std::mutex> guard(mutex_);
        live_ -= class_of(bytes);
        idle_.push_back({p, class_of(bytes)});
    }
    int64_t release() {
        const std::lock_guard<std::mutex> guard(mutex_);
        const int64_t before = mapped_;
        while (!idle_.empty()) drop_oldest();
        most_ = live_;
        return before - mapped_;
    }
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

   private:
    struct Block {
        void* data;
        int64_t size;
    };
    std::mutex mutex_;
    std::deque<Block> idle_;                    // the oldest first
    int64_t live_ = 0, mapped_ = 0, most_ = 0;  // bytes in use, with the idle ones, the most that were ever in use

    void drop_oldest() {
        munmap(idle_.front().data, size_t(idle_.front().size));
        mapped_ -= idle_.front().size;
        idle_.pop_front();
    }
};

// Never destroyed: tensors outlive everything. A child of fork finds it unlocked.
Pool& pool() {
    static Pool* const one = [] {
        auto* made = new Pool;
        pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
        return made;
    }();
    return *one;
}

}  // namespace

int64_t pooled_bytes() { return kHugePage; }
void* take_block(int64_t bytes) { return pool().take(bytes); }
void give_block(void* p, int64_t bytes) { pool().give(p, bytes); }
int64_t release_blocks() { return pool().release(); }

}  // namespace normkit

#else

#include <new>

namespace normkit {

int64_t pooled_bytes() { return 0; }
void* take_block(int64_t) { throw std::bad_alloc(); }
void give_block(void*, int64_t) {}
int64_t release_blocks() { return 0; }

}  // namespace normkit

#endif
