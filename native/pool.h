// The threads that kernels run on: they spin for a moment between calls, then sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cierzo {

class Pool {
public:
    // The process's pool; a forked child gets one of its own, as its parent's threads are not there.
    static Pool& get();
    static void set_threads(int n);  // takes effect at the next `get`, which must not run a job

    explicit Pool(int n);
    ~Pool();
    int size() const { return n_; }

    // Calls job(thread) on every thread, the caller's being 0; returns when all are done. One job at a time: a second
    // caller waits.
    template <class F>
    void run(F&& job) {
        std::lock_guard<std::mutex> one(busy_);
        run_erased([](void* f, int thread) { (*static_cast<std::remove_reference_t<F>*>(f))(thread); }, &job);
    }

private:
    using Job = void (*)(void*, int);
    void run_erased(Job job, void* argument);
    void work(int thread);

    const int n_;
    std::vector<std::thread> threads_;
    std::mutex busy_, sleep_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    Job job_ = nullptr;
    void* argument_ = nullptr;
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<int> done_{0};
};

}  // namespace cierzo
