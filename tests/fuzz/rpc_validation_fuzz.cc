// Bytes as each request message -> conversion and validation: must return, whatever they are. The
// first byte picks the message.
#include <cstddef>
#include <cstdint>
#include <string>

#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/services/budget.h"
#include "server/services/calibration_convert.h"
#include "server/services/mapping_convert.h"
#include "server/services/session_convert.h"
#include "server/services/status_convert.h"
#include "server/services/token_convert.h"
#include "server/session_spec.h"
#include "tests/server/services/one_buffer.h"

namespace kvdepot {
namespace {

constexpr int kKinds = 18;
constexpr uint64_t kEpoch = 1;

template <typename Request, typename Convert>
void Run(const std::string& bytes, Convert convert) {
  Request request;
  if (request.ParseFromString(bytes)) ToGrpcStatus(convert(request));
}

// Requests of which the session's id is all that is checked before the engine.
template <typename Request>
void RunNamed(const std::string& bytes) {
  Run<Request>(bytes, [](const auto& request) { return CheckSessionId(request.session_id()); });
}

void RunOne(int kind, const std::string& bytes) {
  static const Options& options = *new Options;
  static const BufferFinder& find = *new BufferFinder(OneBuffer::Finder());
  switch (kind) {
    case 0:
      return Run<v1::CreateSessionRequest>(bytes, [](const auto& request) {
        const absl::StatusOr<SessionSpec> spec = ToSessionSpec(request);
        if (!spec.ok()) return spec.status();
        if (absl::Status valid = ValidateSpec(*spec, options.engine); !valid.ok()) return valid;
        // What was accepted must be expressible.
        SessionInfo info;
        info.spec = *spec;
        v1::Session session;
        ToProto(info, &session);
        return absl::OkStatus();
      });
    case 1:
      return Run<v1::GetSessionRequest>(
          bytes, [](const auto& request) { return CheckGetSession(request, options.engine); });
    case 2:
      return Run<v1::ListSessionsRequest>(
          bytes, [](const auto& request) { return ToListRange(request, options.engine).status(); });
    case 3:
      return Run<v1::AppendRequest>(
          bytes, [](const auto& request) { return ToTokenChunk(request, options, find).status(); });
    case 4:
      return Run<v1::AttendRequest>(bytes, [](const auto& request) {
        return ToAttendQueries(request, options, find).status();
      });
    case 5:
      return Run<v1::DecodeRequest>(bytes, [](const auto& request) {
        return ToDecodeSteps(request, options, find).status();
      });
    case 6:
      return Run<v1::FetchRequest>(
          bytes, [](const auto& request) { return ToDType(request.dtype()).status(); });
    case 7:
      ToGrpcStatus(ParseCalibration(bytes).status());
      return;
    case 8:
      return RunNamed<v1::TruncateSessionRequest>(bytes);
    case 9:
      return RunNamed<v1::SealSessionRequest>(bytes);
    case 10:
      return RunNamed<v1::TouchSessionRequest>(bytes);
    case 11:
      return RunNamed<v1::DeleteSessionRequest>(bytes);
    case 12:
      return Run<v1::SetBudgetRequest>(
          bytes, [](const auto& request) { return ToMemoryAmount(request).status(); });
    case 13:
      return Run<v1::OpenLeaseRequest>(bytes, [](const auto& request) {
        return CheckLayoutVersion(request.opening().layout_version());
      });
    case 14:
      return Run<v1::MapSessionRequest>(
          bytes, [](const auto& request) { return ToMapRequest(request).status(); });
    case 15:
      return Run<v1::CommitRequest>(
          bytes, [](const auto& request) { return ToCommitRequest(request).status(); });
    case 16:
      return Run<v1::RegisterBufferRequest>(
          bytes, [](const auto& request) { return ToBufferRequest(request).status(); });
    default:
      return Run<v1::UnmapSessionRequest>(bytes, [](const auto& request) {
        absl::Status status = CheckEpoch(request.epoch(), kEpoch);
        if (status.ok()) status = CheckLeaseId(request.lease_id());
        return status.ok() ? CheckSessionId(request.session_id()) : status;
      });
  }
}

}  // namespace
}  // namespace kvdepot

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  kvdepot::RunOne(data[0] % kvdepot::kKinds,
                  std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
  return 0;
}
