// kvdepot budget: how much memory all sessions together may take from now on.
#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"

namespace kvdepot::cli {
namespace {

std::string BudgetText(const v1::SetBudgetResponse& budget) {
  std::string text = absl::StrCat("budget ", BytesText(budget.budget_bytes()), ", ",
                                  BytesText(budget.used_bytes()), " in use");
  if (budget.slab_bytes() > 0) {
    absl::StrAppend(&text, " in slabs of ", BytesText(budget.slab_bytes()));
  }
  absl::StrAppend(&text, "\n");
  const uint64_t taken = std::max(budget.used_bytes(), budget.slab_bytes());
  if (taken > budget.budget_bytes()) {
    absl::StrAppend(&text, "Sessions keep what they have; whoever needs more is refused until ",
                    BytesText(taken - budget.budget_bytes()), " are given up.\n");
  }
  return text;
}

}  // namespace

absl::Status RunBudget(const Arguments& arguments) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::SetBudgetResponse> budget =
      (*client)->SetBudget(arguments[0], Deadline());
  if (!budget.ok()) return budget.status();
  if (WantsJson()) {
    PrintJson(*budget);
  } else {
    std::fputs(BudgetText(*budget).c_str(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
