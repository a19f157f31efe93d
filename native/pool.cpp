#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace cierzo {

namespace {

constexpr auto kSpin = std::chrono::microseconds(200);  // longer than what stands between two calls of one step

std::mutex pool_lock;
std::shared_ptr<Pool> current;
int wanted = 1;

void forget_in_child() {
    // The parent's threads do not exist here and its locks may be held for ever: leave all of it behind, undestroyed.
    new (&current) std::shared_ptr<Pool>;
    new (&pool_lock) std::mutex;
}

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

std::shared_ptr<Pool> Pool::get() {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_in_child);
    (void)registered;
    std::lock_guard<std::mutex> guard(pool_lock);
    if (!current || current->size() != wanted) current = std::make_shared<Pool>(wanted);
    return current;
}

void Pool::set_threads(int n) {
    std::lock_guard<std::mutex> guard(pool_lock);
    wanted = std::max(1, n);
}

Pool::Pool(int n) : n_(n) {
    try {
        for (int thread = 1; thread < n; ++thread) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
        const std::string started = std::to_string(threads_.size() + 1);
        stop();
        throw std::runtime_error("only " + started + " of " + std::to_string(n) + " threads can be started");
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    {
        std::lock_guard<std::mutex> guard(sleep_);
        stop_ = true;
        ++epoch_;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::run_erased(Job job, void* argument) {
    job_ = job;
    argument_ = argument;
    done_.store(0, std::memory_order_relaxed);
    ++epoch_;
    if (sleepers_ > 0) {
        std::lock_guard<std::mutex> guard(sleep_);
        wake_.notify_all();
    }
    job(argument);
    // Where another process has a worker's core, spinning would only keep the worker from it.
    for (int tries = 0; done_.load(std::memory_order_acquire) != n_ - 1; ++tries)
        if (tries < 10'000)
            pause();
        else
            sched_yield();
}

void Pool::work() {
    uint32_t seen = 0;
    for (;;) {
        const auto until = std::chrono::steady_clock::now() + kSpin;
        while (epoch_ == seen) {
            for (int i = 0; i < 64 && epoch_ == seen; ++i) pause();
            if (epoch_ == seen && std::chrono::steady_clock::now() > until) {
                std::unique_lock<std::mutex> guard(sleep_);
                ++sleepers_;
                wake_.wait(guard, [&] { return epoch_ != seen; });
                --sleepers_;
            }
        }
        if (stop_) return;
        ++seen;
        job_(argument_);
        done_.fetch_add(1, std::memory_order_release);
    }
}

}  // namespace cierzo
