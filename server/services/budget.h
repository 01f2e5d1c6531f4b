// What SetBudget does.
#ifndef KVDEPOT_SERVER_SERVICES_BUDGET_H_
#define KVDEPOT_SERVER_SERVICES_BUDGET_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/options.h"
#include "server/services/service_context.h"

namespace kvdepot {

// INVALID_ARGUMENT naming the budget.
absl::StatusOr<MemoryAmount> ToMemoryAmount(const v1::SetBudgetRequest& request);

// PERMISSION_DENIED unless `tenant` is an operator; INVALID_ARGUMENT naming the budget.
absl::Status SetBudget(const ServiceContext& context, const std::string& tenant,
                       const v1::SetBudgetRequest& request, v1::SetBudgetResponse* response);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_BUDGET_H_
