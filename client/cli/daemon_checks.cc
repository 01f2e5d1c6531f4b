#include "client/cli/daemon_checks.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/quantity.h"
#include "client/version.h"
#include "gpu/segment_header.h"

namespace kvdepot::cli {
namespace {

// From here on an alert fires, too (KvdepotMemoryAlmostFull).
constexpr double kAlmostFull = 0.95;
constexpr char kMakeRoom[] =
    "delete sessions that nobody needs (kvdepot sessions, kvdepot delete SESSION), or seal those "
    "that rest (kvdepot seal SESSION)";

bool IsAlmostFull(uint64_t used, uint64_t limit) {
  return static_cast<double>(used) >= kAlmostFull * static_cast<double>(limit);
}

// "0.1" of "0.1.0": what must agree between client and daemon.
std::string Compatible(absl::string_view version) {
  const std::vector<std::string> parts = absl::StrSplit(version, '.');
  return parts.size() < 2 ? std::string(version) : absl::StrCat(parts[0], ".", parts[1]);
}

}  // namespace

Finding CheckVersion(const v1::GetServerInfoResponse& info) {
  const std::string both =
      absl::StrCat("daemon ", info.version(), ", segment format ", info.format_version(),
                   "; this program ", kClientVersion, ", segment format ", kSegmentFormatVersion);
  if (Compatible(info.version()) == Compatible(kClientVersion) &&
      info.format_version() == kSegmentFormatVersion) {
    return absl::StrCat(info.version(), ", segment format ", info.format_version());
  }
  return Misconfigured(both, "install client and daemon of the same release");
}

Finding CheckBackend(const v1::GetServerInfoResponse& info) {
  return absl::StrCat(info.backend(), " (", info.device(), ")");
}

Finding CheckMemory(const v1::GetServerInfoResponse& info, uint64_t tenant_bytes) {
  const std::string all =
      absl::StrCat(BytesText(info.used_bytes()), " of ", BytesText(info.budget_bytes()), " in use");
  if (IsAlmostFull(info.used_bytes(), info.budget_bytes())) {
    return Misconfigured(
        absl::StrCat(all, ": new tokens are about to be refused with RESOURCE_EXHAUSTED, ",
                     "budget_bytes"),
        absl::StrCat(kMakeRoom,
                     ", or give the daemon more, as an operator (kvdepot budget AMOUNT)"));
  }
  const uint64_t quota = info.limits().tenant_quota_bytes();
  if (IsAlmostFull(tenant_bytes, quota)) {
    return Misconfigured(
        absl::StrCat("tenant ", info.tenant(), " uses ", BytesText(tenant_bytes), " of its ",
                     BytesText(quota),
                     ": its new tokens are about to be refused with RESOURCE_EXHAUSTED, "
                     "tenant_quota_bytes"),
        absl::StrCat(kMakeRoom, ", or start the daemon with a larger --tenant_quota_bytes"));
  }
  return all;
}

}  // namespace kvdepot::cli
