#include "server/tenant_limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot {

TenantLimits::TenantLimits(int calls_max, int requests_per_second_max, Clock* clock)
    : calls_max_(calls_max), requests_per_second_max_(requests_per_second_max), clock_(clock) {}

TenantLimits::Use& TenantLimits::Of(const std::string& tenant, absl::Time now) {
  const auto [found, is_new] = tenants_.try_emplace(tenant);
  if (is_new) {
    found->second.requests_left = requests_per_second_max_;
    found->second.counted = now;
  }
  return found->second;
}

absl::Status TenantLimits::BeginCall(const std::string& tenant) {
  const absl::Time now = clock_->Now();
  MutexLock lock(mutex_);
  Use& use = Of(tenant, now);
  if (use.open_calls >= calls_max_) {
    return absl::ResourceExhaustedError(absl::StrCat("calls_per_tenant_max: ", use.open_calls,
                                                     " of ", calls_max_, " calls are open"));
  }
  ++use.open_calls;
  return absl::OkStatus();
}

void TenantLimits::EndCall(const std::string& tenant) {
  MutexLock lock(mutex_);
  Use& use = tenants_.at(tenant);
  KVDEPOT_CHECK(use.open_calls > 0);
  --use.open_calls;
}

absl::Status TenantLimits::CountRequest(const std::string& tenant) {
  if (requests_per_second_max_ == 0) return absl::OkStatus();
  const absl::Time now = clock_->Now();
  MutexLock lock(mutex_);
  Use& use = Of(tenant, now);
  // A clock that is set back takes nothing away.
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - use.counted));
  use.counted = now;
  use.requests_left = std::min<double>(requests_per_second_max_,
                                       use.requests_left + seconds * requests_per_second_max_);
  if (use.requests_left < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("requests_per_second_per_tenant_max: more than ", requests_per_second_max_,
                     " requests a second, try again in a second"));
  }
  --use.requests_left;
  return absl::OkStatus();
}

}  // namespace kvdepot
