#include "server/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cstddef>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "server/error_subject.h"

namespace kvdepot {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;

// gRPC's own bounds begin at 10 us as well; finer where an attend on a GPU lives (6 to 24 us).
const prometheus::Histogram::BucketBoundaries& LatencyBuckets() {
  static const auto* const kBuckets = new prometheus::Histogram::BucketBoundaries{
      1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2,
      2e-2, 5e-2, .1,   .2,   .5,   1,    2,    5,    10,   30};
  return *kBuckets;
}

// From `fine` (about .1) to a codec that has lost its way.
const prometheus::Histogram::BucketBoundaries& ErrorBuckets() {
  static const auto* const kBuckets = new prometheus::Histogram::BucketBoundaries{
      .02, .05, .1, .15, .2, .25, .3, .35, .4, .5, .6, .8, 1};
  return *kBuckets;
}

}  // namespace

Metrics::Metrics()
    : build_info_(BuildGauge()
                      .Name("kvdepot_build_info")
                      .Help("Always 1: release, backend, device and epoch of this daemon's life.")
                      .Register(registry_)) {
  AddMemory();
  AddMappings();
  AddRpcs();
  AddOperations();
  AddTokens();
  AddErrors();
}

Metrics::~Metrics() = default;

void Metrics::AddMemory() {
  start_time_ = &BuildGauge()
                     .Name("kvdepot_start_time_seconds")
                     .Help("When the daemon began to serve, in seconds since 1970.")
                     .Register(registry_)
                     .Add({});
  budget_bytes_ = &BuildGauge()
                       .Name("kvdepot_memory_budget_bytes")
                       .Help("Memory that sessions may use, over all tenants.")
                       .Register(registry_)
                       .Add({});
  used_bytes_ = &BuildGauge()
                     .Name("kvdepot_memory_used_bytes")
                     .Help("Memory that sessions use: segments, sinks and tails.")
                     .Register(registry_)
                     .Add({});
  slab_bytes_ = &BuildGauge()
                     .Name("kvdepot_memory_slab_bytes")
                     .Help(
                         "Device memory taken in slabs for sessions. On the CPU their unused pages "
                         "take none.")
                     .Register(registry_)
                     .Add({});
  slab_unused_bytes_ = &BuildGauge()
                            .Name("kvdepot_memory_slab_unused_bytes")
                            .Help("Of the slabs, what no session uses: room and gaps.")
                            .Register(registry_)
                            .Add({});
  sessions_ = &BuildGauge()
                   .Name("kvdepot_sessions")
                   .Help("Sessions held, over all tenants.")
                   .Register(registry_)
                   .Add({});
  auto& logical = BuildGauge()
                      .Name("kvdepot_session_logical_bytes")
                      .Help("What the tokens held would take uncompressed, by the session's codec.")
                      .Register(registry_);
  auto& stored = BuildGauge()
                     .Name("kvdepot_session_stored_bytes")
                     .Help("What the tokens held take, all in, by the session's codec.")
                     .Register(registry_);
  for (const Codec codec : kCodecs) {
    const prometheus::Labels labels = {{"codec", CodecName(codec)}};
    held_[CodecIndex(codec)] = {&logical.Add(labels), &stored.Add(labels)};
  }
}

void Metrics::AddMappings() {
  leases_ = &BuildGauge()
                 .Name("kvdepot_leases")
                 .Help("Processes that may map sessions.")
                 .Register(registry_)
                 .Add({});
  mapped_bytes_ = &BuildGauge()
                       .Name("kvdepot_mapped_bytes")
                       .Help("Slabs that processes map; one that two map counts twice.")
                       .Register(registry_)
                       .Add({});
  buffer_bytes_ = &BuildGauge()
                       .Name("kvdepot_registered_buffer_bytes")
                       .Help("Memory of clients that calls may read and write in place.")
                       .Register(registry_)
                       .Add({});
  versions_held_back_ =
      &BuildGauge()
           .Name("kvdepot_directory_versions_held_back")
           .Help(
               "Directories that a process has not retired though it was shown a newer one. Their "
               "memory is not reused meanwhile.")
           .Register(registry_)
           .Add({});
  reclaimed_bytes_ = &BuildCounter()
                          .Name("kvdepot_mapped_reclaimed_bytes_total")
                          .Help("Memory that became free when processes let go of directories.")
                          .Register(registry_)
                          .Add({});
  auto& errors = BuildCounter()
                     .Name("kvdepot_mapping_errors_total")
                     .Help(
                         "Steps of mapping that failed, by status code: a process identified and "
                         "attached to its lease, a slab exported and sent, directories retired, "
                         "slabs forgotten. What calls return is in kvdepot_rpc_handled_total.")
                     .Register(registry_);
  for (size_t i = 0; i < mapping_errors_.size(); ++i) {
    const std::string operation(MappingOperationName(kMappingOperations[i]));
    for (size_t c = 1; c < kStatusCodeCount; ++c) {
      const auto code = absl::StatusCodeToString(static_cast<absl::StatusCode>(c));
      mapping_errors_[i][c] = &errors.Add({{"operation", operation}, {"code", code}});
    }
  }
}

void Metrics::AddRpcs() {
  auto& started = BuildCounter()
                      .Name("kvdepot_rpc_started_total")
                      .Help("Calls that arrived, by method.")
                      .Register(registry_);
  auto& handled = BuildCounter()
                      .Name("kvdepot_rpc_handled_total")
                      .Help("Calls that were answered, by method and status code.")
                      .Register(registry_);
  for (size_t m = 0; m < rpc_started_.size(); ++m) {
    const std::string method(kRpcMethodNames[m]);
    rpc_started_[m] = &started.Add({{"method", method}});
    for (size_t c = 0; c < kStatusCodeCount; ++c) {
      const auto code = absl::StatusCodeToString(static_cast<absl::StatusCode>(c));
      rpc_handled_[m][c] = &handled.Add({{"method", method}, {"code", code}});
    }
  }
}

void Metrics::AddOperations() {
  auto& durations =
      BuildHistogram()
          .Name("kvdepot_operation_duration_seconds")
          .Help(
              "Time of queued operations: waiting (queue), on the device (kernel), in all (total).")
          .Register(registry_);
  for (size_t i = 0; i < operations_.size(); ++i) {
    const std::string name(OperationName(kOperations[i]));
    const auto add = [&](const char* stage) {
      return &durations.Add({{"operation", name}, {"stage", stage}}, LatencyBuckets());
    };
    operations_[i] = {add("queue"), add("kernel"), add("total")};
  }
}

void Metrics::AddTokens() {
  appended_tokens_ = &BuildCounter()
                          .Name("kvdepot_appended_tokens_total")
                          .Help("Tokens stored, each layer counted by itself.")
                          .Register(registry_)
                          .Add({});
  const auto family = [this](const char* name, const char* help) -> auto& {
    return BuildCounter().Name(name).Help(help).Register(registry_);
  };
  auto& segments = family("kvdepot_sealed_segments_total", "Segments sealed, by codec.");
  auto& tokens =
      family("kvdepot_sealed_tokens_total", "Tokens sealed, each layer by itself, by codec.");
  auto& logical = family("kvdepot_sealed_logical_bytes_total",
                         "Bytes that sealed tokens took in their session's dtype, by codec.");
  auto& stored = family("kvdepot_sealed_stored_bytes_total",
                        "Bytes that sealed segments took, headers, tables and scales included.");
  for (const Codec codec : kCodecs) {
    const prometheus::Labels labels = {{"codec", CodecName(codec)}};
    Of(codec) = {&segments.Add(labels), &tokens.Add(labels), &logical.Add(labels),
                 &stored.Add(labels)};
  }
  seals_deferred_ = &BuildCounter()
                         .Name("kvdepot_seals_deferred_total")
                         .Help("Seals put off for want of memory: the tokens stay exact meanwhile.")
                         .Register(registry_)
                         .Add({});
  seal_lag_ = &BuildHistogram()
                   .Name("kvdepot_seal_lag_seconds")
                   .Help(
                       "From the addition or commit that made a segment due until it was encoded "
                       "and its exact tokens were free.")
                   .Register(registry_)
                   .Add({}, LatencyBuckets());
}

void Metrics::AddErrors() {
  auto& errors = BuildHistogram()
                     .Name("kvdepot_reconstruction_error_ratio")
                     .Help("Relative L2 error of sampled segments, keys and values apart.")
                     .Register(registry_);
  k_error_ = &errors.Add({{"kind", "k"}}, ErrorBuckets());
  v_error_ = &errors.Add({{"kind", "v"}}, ErrorBuckets());
  auto& rejections =
      BuildCounter()
          .Name("kvdepot_rejections_total")
          .Help("Calls refused although nothing was wrong with them, by the limit they met.")
          .Register(registry_);
  for (size_t i = 0; i < rejections_.size(); ++i) {
    rejections_[i] = &rejections.Add({{"reason", std::string(kRejectionReasons[i])}});
  }
}

void Metrics::SetBuildInfo(const BuildInfo& info) {
  build_info_
      .Add({{"version", info.version},
            {"backend", info.backend},
            {"device", info.device},
            {"epoch", absl::StrCat(absl::Hex(info.epoch, absl::kZeroPad16))}})
      .Set(1);
  start_time_->Set(absl::ToDoubleSeconds(info.start_time - absl::UnixEpoch()));
}

void Metrics::SetUsage(const Usage& usage) {
  budget_bytes_->Set(static_cast<double>(usage.budget_bytes));
  used_bytes_->Set(static_cast<double>(usage.used_bytes));
  slab_bytes_->Set(static_cast<double>(usage.slab_bytes));
  slab_unused_bytes_->Set(static_cast<double>(usage.slab_unused_bytes));
  leases_->Set(static_cast<double>(usage.mapping.leases));
  mapped_bytes_->Set(static_cast<double>(usage.mapping.mapped_bytes));
  buffer_bytes_->Set(static_cast<double>(usage.mapping.buffer_bytes));
  versions_held_back_->Set(static_cast<double>(usage.mapping.versions_held_back));
  reclaimed_bytes_->Increment(static_cast<double>(usage.reclaimed_bytes) -
                              reclaimed_bytes_->Value());
  sessions_->Set(static_cast<double>(usage.session_count));
  for (size_t i = 0; i < held_.size(); ++i) {
    held_[i].logical_bytes->Set(static_cast<double>(usage.held[i].logical));
    held_[i].stored_bytes->Set(static_cast<double>(usage.held[i].stored));
  }
}

void Metrics::OnRpcStarted(RpcMethod method) {
  rpc_started_[static_cast<size_t>(method)]->Increment();
}

void Metrics::OnRpcHandled(RpcMethod method, const absl::Status& status) {
  const auto code = static_cast<size_t>(status.code());
  rpc_handled_[static_cast<size_t>(method)][code]->Increment();
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) CountRejection(status);
}

void Metrics::CountRejection(const absl::Status& status) {
  absl::string_view reason = ErrorSubject(status.message());
  if (absl::IsUnavailable(status) && reason != "draining") reason = "session_busy";
  const auto found = std::find(kRejectionReasons.begin(), kRejectionReasons.end() - 1, reason);
  rejections_[static_cast<size_t>(found - kRejectionReasons.begin())]->Increment();
}

void Metrics::OnOperation(Operation operation, absl::StatusCode, const OperationTimes& times) {
  const OperationHistograms& histograms = operations_[static_cast<size_t>(operation)];
  histograms.queue->Observe(absl::ToDoubleSeconds(times.queue));
  histograms.kernel->Observe(absl::ToDoubleSeconds(times.work));
  histograms.total->Observe(absl::ToDoubleSeconds(times.total));
}

void Metrics::OnAppended(uint64_t tokens) {
  appended_tokens_->Increment(static_cast<double>(tokens));
}

void Metrics::OnSealed(const SealedSegment& segment) {
  const CodecCounters& counters = Of(segment.codec);
  counters.segments->Increment();
  counters.tokens->Increment(segment.tokens);
  counters.logical_bytes->Increment(static_cast<double>(segment.logical_bytes));
  counters.stored_bytes->Increment(static_cast<double>(segment.stored_bytes));
  seal_lag_->Observe(absl::ToDoubleSeconds(segment.lag));
}

void Metrics::OnReconstructionError(double k_error, double v_error) {
  k_error_->Observe(k_error);
  v_error_->Observe(v_error);
}

void Metrics::OnSealDeferred() { seals_deferred_->Increment(); }

void Metrics::OnMappingError(MappingOperation operation, absl::StatusCode code) {
  mapping_errors_[static_cast<size_t>(operation)][static_cast<size_t>(code)]->Increment();
}

std::string Metrics::Text() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, registry_.Collect());
  return out.str();
}

}  // namespace kvdepot
