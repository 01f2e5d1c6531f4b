#include "server/expiry_thread.h"

#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvdepot {
namespace {

// Times to live are given in seconds and more: finer would be noise.
constexpr absl::Duration kPeriod = absl::Seconds(1);

}  // namespace

ExpiryThread::ExpiryThread(std::function<void()> expire)
    : expire_(std::move(expire)), thread_([this] { Run(); }) {}

ExpiryThread::~ExpiryThread() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  stop_requested_.NotifyAll();
  thread_.join();
}

void ExpiryThread::Run() {
  for (;;) {
    {
      MutexLock lock(mutex_);
      const absl::Time next = absl::Now() + kPeriod;
      while (!stopping_ && stop_requested_.WaitUntil(mutex_, next)) {
      }
      if (stopping_) return;
    }
    expire_();
  }
}

}  // namespace kvdepot
