#include "client/after_stream.h"

#include <utility>

#include "absl/status/statusor.h"

namespace kvdepot {

AfterStream::AfterStream(int device) : thread_([this, device] { Loop(device); }) {}

AfterStream::~AfterStream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

absl::Status AfterStream::Run(cudaStream_t stream,
                              std::function<void(const absl::Status&)> function) {
  absl::StatusOr<Event> event = Event::Create(Event::Wait::kSleep);
  if (!event.ok()) return event.status();
  absl::Status status = event->Record(stream);
  if (!status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  tasks_.push_back({*std::move(event), std::move(function)});
  ++queued_;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status AfterStream::Wait(absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  const size_t target = queued_;
  while (done_ < target) {
    if (changed_.wait_until(lock, absl::ToChronoTime(deadline)) == std::cv_status::timeout) {
      return absl::DeadlineExceededError("stream: its work takes longer");
    }
  }
  return absl::OkStatus();
}

size_t AfterStream::pending() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queued_ - done_;
}

void AfterStream::Loop(int device) {
  (void)cudaSetDevice(device);
  // Another thread may be capturing; what is called here has no part in it.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    while (tasks_.empty()) {
      if (ending_) return;
      changed_.wait(lock);
    }
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task.function(task.event.Synchronize());
    // What the function holds goes before anybody hears that it is done.
    task = Task();
    lock.lock();
    ++done_;
    changed_.notify_all();
  }
}

}  // namespace kvdepot
