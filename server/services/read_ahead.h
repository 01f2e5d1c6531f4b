// Two message buffers of a stream: the next message is received while one is worked on.
//
// A reactor calls Received for each OnReadDone and Worked when a message has been dealt with, and
// does what they return. Messages are worked on one at a time, in order. Thread-safe: gRPC and the
// engine call from different threads.
#ifndef KVDEPOT_SERVER_SERVICES_READ_AHEAD_H_
#define KVDEPOT_SERVER_SERVICES_READ_AHEAD_H_

#include "server/mutex.h"

namespace kvdepot {

template <typename Message>
class ReadAhead {
 public:
  enum class Next {
    kWait,  // Nothing to do now: another call follows.
    kWork,  // Read on, then work on current().
    kEnd,   // All messages have been worked on and no more will come. Returned once.
  };

  // `ok` as OnReadDone tells it: false when no message will follow.
  Next Received(bool ok) {
    MutexLock lock(mutex_);
    (ok ? received_ : ended_) = true;
    return Advance();
  }

  Next Worked() {
    MutexLock lock(mutex_);
    working_ = false;
    return Advance();
  }

  // The call has failed: from now on everything waits.
  void Stop() {
    MutexLock lock(mutex_);
    stopped_ = true;
  }

  // Where the message that is being received goes.
  Message* spare() { return &buffers_[1 - current_]; }
  // After kWork, until Worked.
  const Message& current() const { return buffers_[current_]; }

 private:
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (stopped_ || working_) return Next::kWait;
    if (received_) {
      received_ = false;
      working_ = true;
      current_ = 1 - current_;
      return Next::kWork;
    }
    if (!ended_) return Next::kWait;
    stopped_ = true;
    return Next::kEnd;
  }

  Mutex mutex_;
  bool received_ ABSL_GUARDED_BY(mutex_) = false;
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  // Changes only inside Advance, when neither buffer is in use: no read is open, no work is done.
  int current_ = 0;
  Message buffers_[2];
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_READ_AHEAD_H_
