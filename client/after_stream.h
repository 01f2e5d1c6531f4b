// Runs functions on a thread of its own, in order, each once the device has done what was queued on
// a CUDA stream before it. Internal to the client library.
#ifndef KVDEPOT_CLIENT_AFTER_STREAM_H_
#define KVDEPOT_CLIENT_AFTER_STREAM_H_

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gpu/device_memory.h"

namespace kvdepot {

class AfterStream {
 public:
  // `device` is current for the functions.
  explicit AfterStream(int device);
  // Waits for all functions.
  ~AfterStream();
  AfterStream(const AfterStream&) = delete;
  AfterStream& operator=(const AfterStream&) = delete;

  // `function` is called with how the work went. The error is that of queueing; it is not called
  // then. `stream` is not being captured.
  absl::Status Run(cudaStream_t stream, std::function<void(const absl::Status&)> function);
  // Returns when all functions queued so far have returned. DEADLINE_EXCEEDED.
  absl::Status Wait(absl::Time deadline);
  // How many have not returned.
  size_t pending() const;

 private:
  struct Task {
    Event event;
    std::function<void(const absl::Status&)> function;
  };

  void Loop(int device);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_. The first task is being run.
  std::deque<Task> tasks_;
  size_t queued_ = 0;
  size_t done_ = 0;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_AFTER_STREAM_H_
