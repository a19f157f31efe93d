// The threads that kernels run on: they spin for a moment between calls, then sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace cierzo {

class Pool {
public:
    // The process's pool; a forked child gets one of its own, as its parent's threads are not there.
    static std::shared_ptr<Pool> get();
    static void set_threads(int n);  // for jobs from now on; one that runs keeps the threads that it has

    explicit Pool(int n);
    ~Pool();
    int size() const { return n_; }

    // Calls job() on every thread, the caller's among them; returns when all are done. One job at a time: a second caller
    // waits. A job must not throw.
    template <class F>
    void run(F&& job) {
        std::lock_guard<std::mutex> one(busy_);
        run_erased([](void* f) noexcept { (*static_cast<std::remove_reference_t<F>*>(f))(); }, &job);
    }

private:
    using Job = void (*)(void*) noexcept;
    void run_erased(Job job, void* argument);
    void work();
    void stop();

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
