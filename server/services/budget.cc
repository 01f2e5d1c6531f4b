#include "server/services/budget.h"

#include "absl/strings/str_cat.h"
#include "server/services/field_error.h"

namespace kvdepot {

absl::StatusOr<MemoryAmount> ToMemoryAmount(const v1::SetBudgetRequest& request) {
  MemoryAmount amount;
  std::string problem;
  if (AbslParseFlag(request.budget(), &amount, &problem)) return amount;
  return absl::InvalidArgumentError(absl::StrCat("budget: ", request.budget(), ", ", problem));
}

absl::Status SetBudget(const ServiceContext& context, const std::string& tenant,
                       const v1::SetBudgetRequest& request, v1::SetBudgetResponse* response) {
  const absl::StatusOr<MemoryAmount> amount = ToMemoryAmount(request);
  if (!amount.ok()) return amount.status();
  Engine* const engine = context.engine;
  const uint64_t before = engine->budget_bytes();
  const uint64_t budget_bytes = amount->Of(engine->device_memory_bytes());
  if (budget_bytes == 0) return FieldError("budget", request.budget(), "at least 1 byte");
  engine->SetBudget(budget_bytes);
  response->set_budget_bytes(budget_bytes);
  response->set_used_bytes(engine->used_bytes());
  response->set_slab_bytes(engine->slab_usage().slab_bytes);
  context.log->Info("budget_changed", {{"tenant", tenant},
                                       {"from_bytes", absl::StrCat(before)},
                                       {"to_bytes", absl::StrCat(budget_bytes)},
                                       {"used_bytes", absl::StrCat(response->used_bytes())},
                                       {"slab_bytes", absl::StrCat(response->slab_bytes())}});
  return absl::OkStatus();
}

}  // namespace kvdepot
