// The one parallel loop of the kernels.
//
// Results never depend on the number of threads: callers cut their work into tasks whose results are combined in
// a fixed order. torch's thread count is honoured because its OpenMP runtime is the one that is loaded.
// With NORMKIT_STD_THREADS the loop runs on std::thread, which ThreadSanitizer understands.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#if defined(NORMKIT_STD_THREADS)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace normkit::NORMKIT_ISA {

// Below this many elements per thread, waking a thread costs more than it gives.
#if defined(NORMKIT_STD_THREADS)
constexpr int64_t kGrain = 1 << 8;  // small tensors are there to be shared
#else
constexpr int64_t kGrain = 1 << 14;
#endif

inline int threads_for(int64_t elements) {
#if defined(NORMKIT_STD_THREADS)
    const int most = 4;
#elif defined(_OPENMP)
    const int most = omp_in_parallel() ? 1 : omp_get_max_threads();
#else
    const int most = 1;
#endif
    return int(std::clamp<int64_t>(elements / kGrain, 1, most));
}

// body(task) for each task in [0, tasks). A thread takes neighbouring tasks, the same ones in every loop over as
// many; a loop that runs backward starts with what the one before it left in the cache.
enum class Order { forward, backward };

template <class Body>
void parallel(int64_t tasks, int threads, Order order, const Body& body) {
    threads = int(std::min<int64_t>(threads, tasks));
    const auto share = [&](int64_t t, int64_t of) {
        const int64_t first = tasks * t / of, last = tasks * (t + 1) / of;
        for (int64_t i = first; i < last; ++i) body(order == Order::forward ? i : first + last - 1 - i);
    };
    if (threads <= 1) return share(0, 1);
#if defined(NORMKIT_STD_THREADS)
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t) team.emplace_back(share, t, threads);
    for (auto& member : team) member.join();
#elif defined(_OPENMP)
    // The runtime may grant fewer threads than were asked for.
#pragma omp parallel num_threads(threads)
    share(omp_get_thread_num(), omp_get_num_threads());
#endif
}

// Sums of the results of tasks, as a tree that the number of tasks alone decides. Each task says when its own is ready;
// who comes second to a node adds its right half to its left one, which is mostly his own work of just before. In the
// end the sum is where the result of task 0 was.
class SumTree {
   public:
    static constexpr int64_t kMost = 64;  // tasks
    explicit SumTree(int64_t tasks) : tasks_(tasks) {}

    template <class Add>  // add(left, right)
    void ready(int64_t task, const Add& add) {
        for (int64_t step = 1; step < tasks_; step *= 2) {
            const int64_t left = task / (2 * step) * (2 * step), right = left + step;
            task = left;
            if (right >= tasks_) continue;
            if (!one_is_ready_[right].exchange(true, std::memory_order_acq_rel)) return;
            add(left, right);
        }
    }

   private:
    const int64_t tasks_;
    std::array<std::atomic<bool>, kMost> one_is_ready_{};  // by the right half
};

}  // namespace normkit::NORMKIT_ISA
