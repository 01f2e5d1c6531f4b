// Every Prometheus family of the daemon. Each series exists with a zero before any traffic; labels
// are bounded sets, never a session, tenant or message. Thread-safe.
#ifndef KVDEPOT_SERVER_METRICS_H_
#define KVDEPOT_SERVER_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/engine_observer.h"
#include "server/lease_table.h"
#include "server/rpc_method.h"

namespace kvdepot {

// What does not change while the daemon lives.
struct BuildInfo {
  std::string version;
  std::string backend;
  std::string device;
  uint64_t epoch = 0;
  absl::Time start_time;
};

// What sessions may take and take at one moment.
struct Usage {
  struct Bytes {
    uint64_t logical = 0;
    uint64_t stored = 0;
  };
  uint64_t budget_bytes = 0;
  uint64_t used_bytes = 0;
  uint64_t slab_bytes = 0;
  uint64_t slab_unused_bytes = 0;
  uint64_t session_count = 0;
  std::array<Bytes, kCodecCount> held;  // as CodecIndex
  MappingUsage mapping;
  uint64_t reclaimed_bytes = 0;
};

// Why a call that was right in itself was refused: the limit it met, another call on the session,
// the end of the daemon. A limit that has no entry is "other", the last one.
inline constexpr std::array<absl::string_view, 18> kRejectionReasons = {
    "budget_bytes",
    "tenant_quota_bytes",
    "device_memory",
    "message_bytes_max",
    "queued_requests_per_tenant_max",
    "calls_per_tenant_max",
    "requests_per_second_per_tenant_max",
    "sessions_per_tenant_max",
    "tokens_per_session_max",
    "calibrations_per_tenant_max",
    "leases_per_tenant_max",
    "directory_versions_max",
    "buffers_per_lease_max",
    "buffer_bytes_per_tenant_max",
    "unmap_timeout",
    "session_busy",
    "draining",
    "other"};

class Metrics final : public EngineObserver {
 public:
  Metrics();
  ~Metrics() override;

  void SetBuildInfo(const BuildInfo& info);
  // Read from the engine's own books right before a scrape.
  void SetUsage(const Usage& usage);

  // Exactly one OnRpcHandled for each OnRpcStarted.
  void OnRpcStarted(RpcMethod method);
  // RESOURCE_EXHAUSTED and UNAVAILABLE count as rejections too, by what the message is about.
  void OnRpcHandled(RpcMethod method, const absl::Status& status);

  void OnOperation(Operation operation, absl::StatusCode code,
                   const OperationTimes& times) override;
  void OnAppended(uint64_t tokens) override;
  void OnSealed(const SealedSegment& segment) override;
  void OnReconstructionError(double k_error, double v_error) override;
  void OnSealDeferred() override;
  void OnMappingError(MappingOperation operation, absl::StatusCode code) override;

  // All families in Prometheus' text format 0.0.4.
  std::string Text() const;

 private:
  struct CodecCounters {
    prometheus::Counter* segments;
    prometheus::Counter* tokens;
    prometheus::Counter* logical_bytes;
    prometheus::Counter* stored_bytes;
  };
  struct CodecGauges {
    prometheus::Gauge* logical_bytes;
    prometheus::Gauge* stored_bytes;
  };
  struct OperationHistograms {
    prometheus::Histogram* queue;
    prometheus::Histogram* kernel;
    prometheus::Histogram* total;
  };
  static constexpr int kStatusCodeCount = 17;

  void AddMemory();
  void AddMappings();
  void AddRpcs();
  void AddOperations();
  void AddTokens();
  void AddErrors();
  void CountRejection(const absl::Status& status);
  CodecCounters& Of(Codec codec) { return sealed_[CodecIndex(codec)]; }

  prometheus::Registry registry_;
  prometheus::Family<prometheus::Gauge>& build_info_;
  // Owned by registry_, like everything below.
  prometheus::Gauge* start_time_ = nullptr;
  prometheus::Gauge* budget_bytes_ = nullptr;
  prometheus::Gauge* used_bytes_ = nullptr;
  prometheus::Gauge* slab_bytes_ = nullptr;
  prometheus::Gauge* slab_unused_bytes_ = nullptr;
  prometheus::Gauge* sessions_ = nullptr;
  prometheus::Gauge* leases_ = nullptr;
  prometheus::Gauge* mapped_bytes_ = nullptr;
  prometheus::Gauge* buffer_bytes_ = nullptr;
  prometheus::Gauge* versions_held_back_ = nullptr;
  prometheus::Counter* reclaimed_bytes_ = nullptr;
  std::array<std::array<prometheus::Counter*, kStatusCodeCount>, std::size(kMappingOperations)>
      mapping_errors_{};
  std::array<CodecGauges, kCodecCount> held_{};
  std::array<prometheus::Counter*, kRpcMethodCount> rpc_started_{};
  std::array<std::array<prometheus::Counter*, kStatusCodeCount>, kRpcMethodCount> rpc_handled_{};
  std::array<OperationHistograms, std::size(kOperations)> operations_{};
  prometheus::Counter* appended_tokens_ = nullptr;
  std::array<CodecCounters, kCodecCount> sealed_{};
  prometheus::Histogram* k_error_ = nullptr;
  prometheus::Histogram* v_error_ = nullptr;
  prometheus::Counter* seals_deferred_ = nullptr;
  prometheus::Histogram* seal_lag_ = nullptr;
  std::array<prometheus::Counter*, kRejectionReasons.size()> rejections_{};
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_METRICS_H_
