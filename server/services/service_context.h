// What the services work with. Owned by Server, outlives every call.
#ifndef KVDEPOT_SERVER_SERVICES_SERVICE_CONTEXT_H_
#define KVDEPOT_SERVER_SERVICES_SERVICE_CONTEXT_H_

#include <cstdint>
#include <string>

#include "server/calibration_store.h"
#include "server/clock.h"
#include "server/current_tenants.h"
#include "server/engine.h"
#include "server/logging.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/pending_answers.h"
#include "server/tenant_limits.h"

namespace kvdepot {

struct ServiceContext {
  // engine.budget_bytes is set.
  Options options;
  BuildInfo build;
  // host:port; empty if there is none.
  std::string metrics_address;
  // Path of the socket that leases hold open; empty if there is none.
  std::string life_socket;
  Clock* clock = nullptr;
  const CurrentTenants* tenants = nullptr;
  TenantLimits* limits = nullptr;
  PendingAnswers* answers = nullptr;
  Engine* engine = nullptr;
  CalibrationStore* calibrations = nullptr;
  Metrics* metrics = nullptr;
  Log* log = nullptr;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_SERVICE_CONTEXT_H_
