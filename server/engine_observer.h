// What the engine tells the world about its work. Metrics implement it; the engine knows no metrics
// library.
#ifndef KVDEPOT_SERVER_ENGINE_OBSERVER_H_
#define KVDEPOT_SERVER_ENGINE_OBSERVER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gpu/shape.h"

namespace kvdepot {

// Calls that go through the queue.
enum class Operation { kAppend, kAttend, kDecode, kFetch, kTruncate, kSeal, kMap, kCommit };
inline constexpr Operation kOperations[] = {
    Operation::kAppend,   Operation::kAttend, Operation::kDecode, Operation::kFetch,
    Operation::kTruncate, Operation::kSeal,   Operation::kMap,    Operation::kCommit};

constexpr absl::string_view OperationName(Operation operation) {
  switch (operation) {
    case Operation::kAppend:
      return "append";
    case Operation::kAttend:
      return "attend";
    case Operation::kDecode:
      return "decode";
    case Operation::kFetch:
      return "fetch";
    case Operation::kTruncate:
      return "truncate";
    case Operation::kSeal:
      return "seal";
    case Operation::kMap:
      return "map";
    case Operation::kCommit:
      return "commit";
  }
  return "";
}

// Where one request's time went. `queue`: until its first piece began. `work`: inside its pieces.
// `total`: from the call to the result; the rest was spent between pieces.
struct OperationTimes {
  absl::Duration queue;
  absl::Duration work;
  absl::Duration total;
};

struct SealedSegment {
  // Raw also where the session's could not hold the values.
  Codec codec = Codec::kRaw;
  int tokens = 0;
  // Its values in the session's dtype.
  uint64_t logical_bytes = 0;
  uint64_t stored_bytes = 0;
  // Since the addition, or the SealSession, that made it due.
  absl::Duration lag;
};

// Steps of mapping that are no call of their own, so that no call's status code tells of them.
enum class MappingOperation { kIdentify, kAttach, kExport, kSend, kRetire, kForget, kRegister };
inline constexpr MappingOperation kMappingOperations[] = {
    MappingOperation::kIdentify, MappingOperation::kAttach, MappingOperation::kExport,
    MappingOperation::kSend,     MappingOperation::kRetire, MappingOperation::kForget,
    MappingOperation::kRegister};

constexpr absl::string_view MappingOperationName(MappingOperation operation) {
  switch (operation) {
    case MappingOperation::kIdentify:
      return "identify";
    case MappingOperation::kAttach:
      return "attach";
    case MappingOperation::kExport:
      return "export";
    case MappingOperation::kSend:
      return "send";
    case MappingOperation::kRetire:
      return "retire";
    case MappingOperation::kRegister:
      return "register";
    case MappingOperation::kForget:
      return "forget";
  }
  return "";
}

// Methods are called from any thread, most by the worker: they must be quick and must not block.
// Does nothing by itself, so that an observer overrides only what it wants.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;

  // One queued call has its result. One chunk of an Append counts as one operation, its Finish as
  // another.
  virtual void OnOperation(Operation operation, absl::StatusCode code, const OperationTimes& times);
  // `tokens` of one layer were stored.
  virtual void OnAppended(uint64_t tokens);
  virtual void OnSealed(const SealedSegment& segment);
  // Relative L2 error of K and V of a block of one `planes` segment in
  // EngineOptions::error_sample_interval.
  virtual void OnReconstructionError(double k_error, double v_error);
  // No memory for a segment: its tokens stay in the tail until the next addition. Refused requests
  // are not reported here, their Status says why.
  virtual void OnSealDeferred();
  // A step of a lease has failed with `code`.
  virtual void OnMappingError(MappingOperation operation, absl::StatusCode code);
};

inline void EngineObserver::OnOperation(Operation, absl::StatusCode, const OperationTimes&) {}
inline void EngineObserver::OnAppended(uint64_t) {}
inline void EngineObserver::OnSealed(const SealedSegment&) {}
inline void EngineObserver::OnReconstructionError(double, double) {}
inline void EngineObserver::OnSealDeferred() {}
inline void EngineObserver::OnMappingError(MappingOperation, absl::StatusCode) {}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_OBSERVER_H_
