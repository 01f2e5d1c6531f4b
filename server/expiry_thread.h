// Calls a function once a second until destroyed: sessions whose time has come are deleted by it.
#ifndef KVDEPOT_SERVER_EXPIRY_THREAD_H_
#define KVDEPOT_SERVER_EXPIRY_THREAD_H_

#include <functional>
#include <thread>

#include "server/mutex.h"

namespace kvdepot {

class ExpiryThread {
 public:
  explicit ExpiryThread(std::function<void()> expire);
  ~ExpiryThread();
  ExpiryThread(const ExpiryThread&) = delete;
  ExpiryThread& operator=(const ExpiryThread&) = delete;

 private:
  void Run();

  const std::function<void()> expire_;
  Mutex mutex_;
  CondVar stop_requested_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_EXPIRY_THREAD_H_
