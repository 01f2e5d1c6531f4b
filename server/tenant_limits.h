// How many calls each tenant has open, and how many requests it sends a second. What callers take
// before they are known is bounded by rpc_memory_bytes_max.
#ifndef KVDEPOT_SERVER_TENANT_LIMITS_H_
#define KVDEPOT_SERVER_TENANT_LIMITS_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace kvdepot {

// Thread-safe. Tenants are those of token files: few, so none is forgotten.
class TenantLimits {
 public:
  // `requests_per_second_max` 0: any number.
  TenantLimits(int calls_max, int requests_per_second_max, Clock* clock);

  // RESOURCE_EXHAUSTED naming calls_per_tenant_max; if OK, one EndCall follows.
  absl::Status BeginCall(const std::string& tenant);
  void EndCall(const std::string& tenant);

  // RESOURCE_EXHAUSTED naming requests_per_second_per_tenant_max: what the last second left over is
  // used up (a token bucket that holds the requests of one second).
  absl::Status CountRequest(const std::string& tenant);

 private:
  struct Use {
    int open_calls = 0;
    // Requests that may come at once, as of `counted`.
    double requests_left;
    absl::Time counted;
  };

  Use& Of(const std::string& tenant, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int calls_max_;
  const int requests_per_second_max_;
  Clock* const clock_;
  Mutex mutex_;
  std::map<std::string, Use> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_TENANT_LIMITS_H_
