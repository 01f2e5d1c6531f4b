// Holds a thread where a test wants it, so that what happens meanwhile does not depend on timing.
#ifndef KVDEPOT_TESTS_SERVER_GATE_H_
#define KVDEPOT_TESTS_SERVER_GATE_H_

#include "server/mutex.h"

namespace kvdepot {

// Thread-safe. Closed at first.
class Gate {
 public:
  void Close() {
    MutexLock lock(mu_);
    open_ = false;
    reached_ = false;
  }
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  // Waits until it is open.
  void Pass() {
    MutexLock lock(mu_);
    reached_ = true;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mu_);
  }
  // Until somebody has come since it was closed.
  void WaitUntilReached() {
    MutexLock lock(mu_);
    while (!reached_) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool reached_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_GATE_H_
