// Calls that the daemon has taken on and whose answers are not out yet, down to the last byte: what
// its end waits for. Thread-safe.
#ifndef KVDEPOT_SERVER_PENDING_ANSWERS_H_
#define KVDEPOT_SERVER_PENDING_ANSWERS_H_

#include "absl/time/time.h"
#include "server/mutex.h"

namespace kvdepot {

class PendingAnswers {
 public:
  void Add() {
    MutexLock lock(mutex_);
    ++count_;
  }
  // Once for each Add.
  void Remove() {
    MutexLock lock(mutex_);
    --count_;
    changed_.NotifyAll();
  }
  // How many are left when there are none or `deadline` has come.
  int WaitUntilNone(absl::Time deadline) {
    MutexLock lock(mutex_);
    while (count_ > 0 && changed_.WaitUntil(mutex_, deadline)) {
    }
    return count_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_PENDING_ANSWERS_H_
