// The ledger of memory: how much all sessions together, and each tenant's, may use and do.
#ifndef KVDEPOT_SERVER_MEMORY_BUDGET_H_
#define KVDEPOT_SERVER_MEMORY_BUDGET_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "server/mutex.h"

namespace kvdepot {

class MemoryBudget;

// Bytes taken from a budget. Reserve, do the work, then keep the charge beside the memory that it
// stands for; dropping it gives the bytes back, which is the rollback as well as the end. Must not
// outlive its budget.
class MemoryCharge {
 public:
  MemoryCharge() = default;
  MemoryCharge(MemoryCharge&& other) noexcept;
  MemoryCharge& operator=(MemoryCharge&& other) noexcept;
  ~MemoryCharge();

  uint64_t bytes() const { return bytes_; }

  // Cuts `bytes` off into a charge of their own. At most bytes().
  MemoryCharge Split(uint64_t bytes);

 private:
  friend class MemoryBudget;
  MemoryCharge(MemoryBudget* budget, uint64_t* tenant_used, uint64_t bytes)
      : budget_(budget), tenant_used_(tenant_used), bytes_(bytes) {}

  MemoryBudget* budget_ = nullptr;
  uint64_t* tenant_used_ = nullptr;
  uint64_t bytes_ = 0;
};

// Thread-safe. Its lock is a leaf: charges may be dropped with or without other locks held.
// `tenant_quota_bytes` 0 stands for the whole budget, whatever it is.
class MemoryBudget {
 public:
  MemoryBudget(uint64_t budget_bytes, uint64_t tenant_quota_bytes);
  // Every charge is gone by then.
  ~MemoryBudget();

  // RESOURCE_EXHAUSTED naming budget_bytes or tenant_quota_bytes, its value, the bytes in use and
  // those asked for.
  absl::StatusOr<MemoryCharge> Reserve(const std::string& tenant, uint64_t bytes);

  // Charges beyond a smaller budget stay; nothing more is reserved until they are few enough.
  void SetBudget(uint64_t budget_bytes);

  uint64_t budget_bytes() const;
  uint64_t used_bytes() const;
  uint64_t tenant_used_bytes(const std::string& tenant) const;

 private:
  friend class MemoryCharge;
  void Release(uint64_t* tenant_used, uint64_t bytes);

  const uint64_t tenant_quota_bytes_;
  mutable Mutex mu_;
  uint64_t budget_bytes_ ABSL_GUARDED_BY(mu_);
  uint64_t used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // Entries are never erased: charges point at them, and the daemon's token file bounds the
  // tenants.
  std::map<std::string, uint64_t> used_by_tenant_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_MEMORY_BUDGET_H_
