#include "server/memory_budget.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot {

MemoryCharge::MemoryCharge(MemoryCharge&& other) noexcept
    : budget_(other.budget_),
      tenant_used_(other.tenant_used_),
      bytes_(std::exchange(other.bytes_, 0)) {}

MemoryCharge& MemoryCharge::operator=(MemoryCharge&& other) noexcept {
  // What this charge held until now goes with `taken`.
  MemoryCharge taken(std::move(other));
  std::swap(budget_, taken.budget_);
  std::swap(tenant_used_, taken.tenant_used_);
  std::swap(bytes_, taken.bytes_);
  return *this;
}

MemoryCharge::~MemoryCharge() {
  if (bytes_ > 0) budget_->Release(tenant_used_, bytes_);
}

MemoryCharge MemoryCharge::Split(uint64_t bytes) {
  KVDEPOT_CHECK(bytes <= bytes_);
  bytes_ -= bytes;
  return MemoryCharge(budget_, tenant_used_, bytes);
}

MemoryBudget::MemoryBudget(uint64_t budget_bytes, uint64_t tenant_quota_bytes)
    : tenant_quota_bytes_(tenant_quota_bytes), budget_bytes_(budget_bytes) {}

MemoryBudget::~MemoryBudget() { KVDEPOT_CHECK(used_bytes() == 0); }

absl::StatusOr<MemoryCharge> MemoryBudget::Reserve(const std::string& tenant, uint64_t bytes) {
  const auto exhausted = [bytes](absl::string_view limit, uint64_t used, uint64_t value) {
    return absl::ResourceExhaustedError(
        absl::StrCat(limit, ": ", used, " used of ", value, ", ", bytes, " more needed"));
  };
  MutexLock lock(mu_);
  uint64_t& tenant_used = used_by_tenant_[tenant];
  if (bytes > budget_bytes_ || used_bytes_ > budget_bytes_ - bytes) {
    return exhausted("budget_bytes", used_bytes_, budget_bytes_);
  }
  const uint64_t quota = tenant_quota_bytes_ == 0 ? budget_bytes_ : tenant_quota_bytes_;
  if (bytes > quota || tenant_used > quota - bytes) {
    return exhausted("tenant_quota_bytes", tenant_used, quota);
  }
  tenant_used += bytes;
  used_bytes_ += bytes;
  return MemoryCharge(this, &tenant_used, bytes);
}

void MemoryBudget::SetBudget(uint64_t budget_bytes) {
  MutexLock lock(mu_);
  budget_bytes_ = budget_bytes;
}

uint64_t MemoryBudget::budget_bytes() const {
  MutexLock lock(mu_);
  return budget_bytes_;
}

uint64_t MemoryBudget::used_bytes() const {
  MutexLock lock(mu_);
  return used_bytes_;
}

uint64_t MemoryBudget::tenant_used_bytes(const std::string& tenant) const {
  MutexLock lock(mu_);
  const auto found = used_by_tenant_.find(tenant);
  return found == used_by_tenant_.end() ? 0 : found->second;
}

void MemoryBudget::Release(uint64_t* tenant_used, uint64_t bytes) {
  MutexLock lock(mu_);
  KVDEPOT_CHECK(bytes <= *tenant_used && bytes <= used_bytes_);
  *tenant_used -= bytes;
  used_bytes_ -= bytes;
}

}  // namespace kvdepot
