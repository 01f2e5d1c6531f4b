#include "server/engine_options.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/shape.h"

namespace kvdepot {
namespace {

constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kIntMax = std::numeric_limits<int>::max();

struct Range {
  uint64_t least = 0;
  uint64_t most = 0;
  uint64_t multiple_of = 1;
};

class ProblemList {
 public:
  template <typename Number>
  void Check(const char* name, Number value, const Range& range) {
    // A negative number becomes one that is too large.
    const uint64_t magnitude = static_cast<uint64_t>(value);
    if (magnitude >= range.least && magnitude <= range.most && magnitude % range.multiple_of == 0) {
      return;
    }
    std::string problem = absl::StrCat(name, ": ", value, ", must be ");
    if (range.most == kAny) {
      absl::StrAppend(&problem, "at least ", range.least);
    } else {
      absl::StrAppend(&problem, range.least, "..", range.most);
    }
    if (range.multiple_of > 1) absl::StrAppend(&problem, ", a multiple of ", range.multiple_of);
    problems_.push_back(std::move(problem));
  }

  std::vector<std::string> Take() { return std::move(problems_); }

 private:
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> EngineOptions::Problems() const {
  constexpr Range kCount = {1, 1000000};
  constexpr Range kBytes = {1, kAny};
  constexpr Range kSegment = {kBlockTokens, kSegmentTokensMax, kBlockTokens};
  ProblemList problems;
  problems.Check("budget_bytes", budget_bytes, kBytes);
  problems.Check("sessions_per_tenant_max", sessions_per_tenant_max, kCount);
  problems.Check("layers_max", layers_max, {1, 4096});
  problems.Check("tokens_per_session_max", tokens_per_session_max, {1, kIntMax});
  problems.Check("name_bytes_max", name_bytes_max, {1, 4096});
  problems.Check("page_size_max", page_size_max, {1, 10000});
  problems.Check("query_tokens_max", query_tokens_max, {1, 65536});
  problems.Check("batch_sessions_max", batch_sessions_max, {1, 65536});
  problems.Check("queued_requests_per_tenant_max", queued_requests_per_tenant_max, kCount);
  problems.Check("work_piece_row_tokens", work_piece_row_tokens, {1, kAny});
  problems.Check("brief_row_tokens_max", brief_row_tokens_max, {0, kAny});
  problems.Check("fetch_bytes_max", fetch_bytes_max, kBytes);
  problems.Check("calibration_bytes_max", calibration_bytes_max, kBytes);
  problems.Check("calibrations_per_tenant_max", calibrations_per_tenant_max, {0, 1000000});
  problems.Check("window_tokens", window_tokens, {kBlockTokens, 1 << 20, kBlockTokens});
  problems.Check("decode_seal_tokens", decode_seal_tokens, kSegment);
  problems.Check("prompt_tokens_min", prompt_tokens_min, {1, 1 << 20});
  problems.Check("segment_tokens_max", segment_tokens_max, kSegment);
  problems.Check("leases_per_tenant_max", leases_per_tenant_max, {0, 1000000});
  problems.Check("lease_timeout_ms", absl::ToInt64Milliseconds(lease_timeout), {10, 86400000});
  problems.Check("directory_versions_max", directory_versions_max, {2, 1000000});
  problems.Check("buffers_per_lease_max", buffers_per_lease_max, {0, 1000000});
  problems.Check("buffer_bytes_per_tenant_max", buffer_bytes_per_tenant_max,
                 {0, uint64_t{16} << 40});
  problems.Check("unmap_timeout_ms", absl::ToInt64Milliseconds(unmap_timeout), {0, 86400000});
  problems.Check("room_tokens_max", room_tokens_max, {1, 1 << 20});
  problems.Check("room_tokens", room_tokens, {1, static_cast<uint64_t>(room_tokens_max)});
  problems.Check("error_sample_interval", error_sample_interval, {0, kIntMax});
  return problems.Take();
}

}  // namespace kvdepot
