// The tenants by which calls are admitted now: exchanged as a whole when the token file is read
// again. Thread-safe.
#ifndef KVDEPOT_SERVER_CURRENT_TENANTS_H_
#define KVDEPOT_SERVER_CURRENT_TENANTS_H_

#include <memory>
#include <utility>

#include "server/mutex.h"
#include "server/tenants.h"

namespace kvdepot {

class CurrentTenants {
 public:
  explicit CurrentTenants(Tenants tenants)
      : tenants_(std::make_shared<const Tenants>(std::move(tenants))) {}

  std::shared_ptr<const Tenants> Get() const {
    const MutexLock lock(mutex_);
    return tenants_;
  }
  void Set(Tenants tenants) {
    auto next = std::make_shared<const Tenants>(std::move(tenants));
    const MutexLock lock(mutex_);
    tenants_.swap(next);
  }

 private:
  mutable Mutex mutex_;
  std::shared_ptr<const Tenants> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CURRENT_TENANTS_H_
