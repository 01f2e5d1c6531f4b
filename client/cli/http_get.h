// Fetches a page of the daemon's metrics listener.
#ifndef KVDEPOT_CLIENT_CLI_HTTP_GET_H_
#define KVDEPOT_CLIENT_CLI_HTTP_GET_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace kvdepot::cli {

// `address` is host:port as in GetServerInfoResponse.metrics_address. UNAVAILABLE unless the answer
// is 200.
absl::StatusOr<std::string> HttpGet(absl::string_view address, absl::string_view path,
                                    absl::Time deadline);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_HTTP_GET_H_
