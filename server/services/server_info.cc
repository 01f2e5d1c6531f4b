#include "server/services/server_info.h"

#include <sys/stat.h>
#include <unistd.h>

#include "gpu/segment_header.h"
#include "server/services/session_convert.h"

namespace kvdepot {
namespace {

void FillLimits(const Options& options, uint64_t tenant_quota_bytes, v1::Limits* limits) {
  const EngineOptions& engine = options.engine;
  limits->set_message_bytes_max(options.message_bytes_max);
  limits->set_sessions_per_tenant_max(static_cast<uint32_t>(engine.sessions_per_tenant_max));
  limits->set_layers_max(static_cast<uint32_t>(engine.layers_max));
  limits->set_tokens_per_session_max(engine.tokens_per_session_max);
  limits->set_query_tokens_max(static_cast<uint32_t>(engine.query_tokens_max));
  limits->set_batch_sessions_max(static_cast<uint32_t>(engine.batch_sessions_max));
  limits->set_name_bytes_max(static_cast<uint32_t>(engine.name_bytes_max));
  limits->set_calibration_bytes_max(engine.calibration_bytes_max);
  limits->set_calibrations_per_tenant_max(
      static_cast<uint32_t>(engine.calibrations_per_tenant_max));
  limits->set_page_size_max(static_cast<uint32_t>(engine.page_size_max));
  limits->set_queued_requests_per_tenant_max(
      static_cast<uint32_t>(engine.queued_requests_per_tenant_max));
  limits->set_tenant_quota_bytes(tenant_quota_bytes);
  limits->set_leases_per_tenant_max(static_cast<uint32_t>(engine.leases_per_tenant_max));
  limits->set_directory_versions_max(static_cast<uint32_t>(engine.directory_versions_max));
  limits->set_buffers_per_lease_max(static_cast<uint32_t>(engine.buffers_per_lease_max));
  limits->set_buffer_bytes_per_tenant_max(engine.buffer_bytes_per_tenant_max);
  limits->set_room_tokens_max(static_cast<uint32_t>(engine.room_tokens_max));
}

}  // namespace

void FillServerInfo(const ServiceContext& context, const std::string& tenant,
                    v1::GetServerInfoResponse* response) {
  response->set_version(context.build.version);
  response->set_epoch(context.build.epoch);
  response->set_backend(context.build.backend);
  response->set_device(context.build.device);
  for (const Codec codec : context.engine->codecs()) response->add_codecs(ToProto(codec));
  for (const v1::Dtype dtype : {v1::DTYPE_BF16, v1::DTYPE_FP16, v1::DTYPE_FP32}) {
    response->add_dtypes(dtype);
  }
  response->set_format_version(kSegmentFormatVersion);
  FillLimits(context.options, context.engine->tenant_quota_bytes(), response->mutable_limits());
  response->set_budget_bytes(context.engine->budget_bytes());
  response->set_used_bytes(context.engine->used_bytes());
  response->set_metrics_address(context.metrics_address);
  response->set_tenant(tenant);
  const SlabUsage slabs = context.engine->slab_usage();
  response->set_slab_bytes(slabs.slab_bytes);
  response->set_slab_unused_bytes(slabs.unused_bytes);
  v1::DaemonProcess* const process = response->mutable_process();
  process->set_pid(static_cast<uint32_t>(getpid()));
  struct stat info = {};
  if (stat("/proc/self/ns/pid", &info) == 0) process->set_pid_namespace(info.st_ino);
}

}  // namespace kvdepot
