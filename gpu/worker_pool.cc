#include "gpu/worker_pool.h"

#include <chrono>

#include "gpu/check.h"

namespace kvdepot {
namespace {

constexpr std::chrono::microseconds kLookOut(200);

}  // namespace

WorkerPool::WorkerPool(int threads) {
  KVDEPOT_CHECK(threads >= 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { Work(thread); });
  }
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  loop_started_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::TakeTasks(int thread) {
  for (int index = next_.fetch_add(1); index < count_; index = next_.fetch_add(1))
    (*task_)(index, thread);
}

void WorkerPool::LookOut(int seen) const {
  const auto end = std::chrono::steady_clock::now() + kLookOut;
  while (loop_.load() == seen && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

void WorkerPool::Work(int thread) {
  int seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    loop_started_.wait(lock, [&] { return stopping_ || (open_ && loop_ != seen); });
    if (stopping_) return;
    seen = loop_;
    ++helpers_;
    lock.unlock();
    TakeTasks(thread);
    lock.lock();
    if (--helpers_ == 0) loop_ended_.notify_one();
    lock.unlock();
    LookOut(seen);
    lock.lock();
  }
}

void WorkerPool::ParallelFor(int count, const std::function<void(int index, int thread)>& task) {
  if (count <= 1 || workers_.empty()) {
    for (int index = 0; index < count; ++index) task(index, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = &task;
    count_ = count;
    next_.store(0);
    open_ = true;
    ++loop_;
  }
  loop_started_.notify_all();
  TakeTasks(0);
  std::unique_lock<std::mutex> lock(mutex_);
  open_ = false;
  loop_ended_.wait(lock, [&] { return helpers_ == 0; });
}

}  // namespace kvdepot
