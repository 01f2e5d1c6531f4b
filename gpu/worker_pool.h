// A fixed set of threads for loops inside one call.
#ifndef KVDEPOT_GPU_WORKER_POOL_H_
#define KVDEPOT_GPU_WORKER_POOL_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvdepot {

// Runs loops on `threads` threads, the caller's included. One loop at a time; ParallelFor returns
// when it is done. It never waits for a thread to wake up: what such a thread would have done,
// others do. Between loops threads look out for the next one for a fifth of a millisecond before
// they sleep, since loops come in rows and waking up can take a scheduler's tick.
class WorkerPool {
 public:
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Calls task(index, thread) for every index below `count`; `thread` is below threads() and no two
  // calls run with the same one at once. Which thread takes which index is not fixed: results must
  // not depend on it. A single task runs on the caller's thread without waking another.
  void ParallelFor(int count, const std::function<void(int index, int thread)>& task);

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  void Work(int thread);
  void TakeTasks(int thread);
  // Returns when a loop after number `seen` has opened, or after a while.
  void LookOut(int seen) const;

  std::mutex mutex_;
  std::condition_variable loop_started_;
  std::condition_variable loop_ended_;
  // Written under mutex_.
  std::atomic<int> loop_{0};
  // Guarded by mutex_.
  bool open_ = false;  // the loop still takes helpers
  int helpers_ = 0;    // workers inside it
  bool stopping_ = false;
  // Written before a loop opens and constant until its last helper has left.
  const std::function<void(int, int)>* task_ = nullptr;
  int count_ = 0;
  std::atomic<int> next_{0};

  std::vector<std::thread> workers_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_WORKER_POOL_H_
