#include "server/server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gpu/backend.h"
#include "gpu/nvidia_devices.h"
#include "server/calibration_folder.h"
#include "server/start_budget.h"
#include "server/unix_socket.h"
#include "server/version.h"

namespace kvdepot {
namespace {

// The name that probes ask for besides the empty one.
constexpr char kServiceName[] = "kvdepot.v1.KvDepotService";

// Between the end of the work and that of the connections: whoever calls meanwhile is told to try
// again. Once gRPC shuts down, calls just break off.
constexpr absl::Duration kRefusalPeriod = absl::Milliseconds(500);

// From the goodbye to a connection to its end: calls that cross it are refused, not broken off.
constexpr std::chrono::milliseconds kGoodbyePeriod(100);

// What connections have to close, beyond the time that calls have.
constexpr absl::Duration kCloseTimeout = absl::Seconds(2);

constexpr absl::Duration kHandshakeTimeout = absl::Seconds(10);

TlsFiles TlsFilesOf(const Options& options) {
  return {options.tls_cert_file, options.tls_key_file, options.tls_client_ca_file};
}

// Keeps the library up until the process ends: when its last user goes, gRPC takes its pollers
// down, and that sometimes waits for a poll of ten seconds to run out.
void HoldGrpcLibrary() {
  static const bool kHeld = (grpc_init(), true);
  (void)kHeld;
}

uint64_t RandomEpoch() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32) | random();
}

// Who may hold memory of the backend's device: "4711 python3,...", or empty if that cannot be seen.
std::string DeviceUsers(const Backend& backend) {
  if (backend.name() != "cuda") return "";
  int minor = -1;
  for (const NvidiaDevice& device : ListNvidiaDevices("/")) {
    if (device.uuid == backend.device()) minor = device.minor;
  }
  return absl::StrJoin(ProcessesWithDevice(minor, "/"), ",");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options, const Hooks& hooks) {
  std::unique_ptr<Server> server(new Server(options, hooks));
  absl::Status status = server->ReadFiles();
  if (status.ok()) status = server->MakeEngine();
  if (status.ok()) status = server->StartPages();
  if (status.ok()) status = server->Listen();
  if (!status.ok()) return status;
  Server* self = server.get();
  self->expiry_ = std::make_unique<ExpiryThread>([self] {
    self->engine_->ExpireSessions();
    self->engine_->ExpireLeases();
    self->WatchTokens();
    self->WatchCertificates();
  });
  if (self->pages_ != nullptr) self->pages_->SetReady(true);
  self->LogStart();
  return server;
}

Server::Server(const Options& options, const Hooks& hooks)
    : options_(options),
      hooks_(hooks),
      log_(options.log_level),
      tenants_(Tenants::Open()),
      token_files_({options.tokens_file}, [this] { return LoadTokens(); }),
      certificate_files_({options.tls_cert_file, options.tls_key_file, options.tls_client_ca_file},
                         [this] { return LoadCertificates(); }),
      limits_(options.calls_per_tenant_max, options.requests_per_second_per_tenant_max, &clock_),
      calibrations_(options.engine.calibrations_per_tenant_max),
      service_(context_) {}

absl::Status Server::ReadFiles() {
  absl::Status status = ReloadTokens();
  if (status.ok()) status = ReloadCertificates();
  if (!status.ok()) return status;
  if (!options_.calibrations_dir.empty()) {
    const absl::StatusOr<int> count = ReadCalibrationFolder(
        options_.calibrations_dir, options_.engine.calibration_bytes_max, &calibrations_);
    if (!count.ok()) return count.status();
    calibration_count_ = *count;
  }
  return absl::OkStatus();
}

absl::Status Server::MakeEngine() {
  BackendOptions backend_options;
  backend_options.device = options_.device;
  backend_options.threads = options_.threads;
  backend_options.slab_bytes = options_.slab_bytes;
  backend_options.cuda.slab_kind =
      options_.slab_handles == "descriptor" ? RegionKind::kCudaMemory : RegionKind::kCudaIpc;
  backend_options.cuda.on_fault = [this](const absl::Status& fault) {
    log_.Error("device_failed", {{"reason", std::string(fault.message())}});
    if (hooks_.on_fault) hooks_.on_fault();
  };
  absl::StatusOr<std::unique_ptr<Backend>> made = hooks_.make_backend(backend_options);
  if (!made.ok()) return made.status();
  std::unique_ptr<Backend> backend = *std::move(made);
  const absl::StatusOr<uint64_t> budget_bytes = FindBudget(*backend);
  if (!budget_bytes.ok()) return budget_bytes.status();
  options_.engine.budget_bytes = *budget_bytes;
  context_.build.version = kVersion;
  context_.build.backend = backend->name();
  context_.build.device = backend->device();
  context_.build.epoch = RandomEpoch();
  context_.build.start_time = clock_.Now();
  metrics_.SetBuildInfo(context_.build);
  engine_ = Engine::Make(options_.engine, std::move(backend), &calibrations_, &clock_, &metrics_);
  context_.options = options_;
  context_.clock = &clock_;
  context_.tenants = &tenants_;
  context_.limits = &limits_;
  context_.answers = &answers_;
  context_.engine = engine_.get();
  context_.calibrations = &calibrations_;
  context_.metrics = &metrics_;
  context_.log = &log_;
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Server::FindBudget(const Backend& backend) {
  const absl::Time start = clock_.Now();
  bool was_short = false;
  StartMemory memory;
  memory.free_bytes = [&backend] { return backend.memory_bytes(); };
  memory.pause = hooks_.pause;
  memory.on_short = [&](uint64_t wanted_bytes, uint64_t free_bytes) {
    was_short = true;
    log_.Warn("memory_short", {{"wanted_bytes", absl::StrCat(wanted_bytes)},
                               {"free_bytes", absl::StrCat(free_bytes)},
                               {"device_users", DeviceUsers(backend)},
                               {"timeout", absl::FormatDuration(options_.memory_wait_timeout)}});
  };
  absl::StatusOr<uint64_t> budget_bytes = BudgetAtStart(options_, &clock_, memory);
  if (was_short && budget_bytes.ok()) {
    log_.Warn("memory_found",
              {{"budget_bytes", absl::StrCat(*budget_bytes)},
               {"seconds", absl::StrCat(absl::ToDoubleSeconds(clock_.Now() - start))}});
  }
  return budget_bytes;
}

absl::Status Server::StartPages() {
  if (options_.metrics_address.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<HttpPages>> pages =
      HttpPages::Start(options_.metrics_address, [this] {
        const EngineTotals totals = engine_->totals();
        const SlabUsage slabs = engine_->slab_usage();
        Usage usage;
        usage.budget_bytes = engine_->budget_bytes();
        usage.used_bytes = engine_->used_bytes();
        usage.slab_bytes = slabs.slab_bytes;
        usage.slab_unused_bytes = slabs.unused_bytes;
        usage.session_count = engine_->session_count();
        usage.mapping = engine_->mapping_usage();
        usage.reclaimed_bytes = engine_->reclaimed_bytes();
        for (const Codec codec : kCodecs) {
          usage.held[CodecIndex(codec)] = {totals.Of(codec).logical, totals.Of(codec).stored};
        }
        metrics_.SetUsage(usage);
        return metrics_.Text();
      });
  if (!pages.ok()) return pages.status();
  pages_ = *std::move(pages);
  context_.metrics_address = pages_->address();
  return absl::OkStatus();
}

absl::Status Server::Listen() {
  HoldGrpcLibrary();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options_.message_bytes_max));
  builder.SetMaxSendMessageSize(static_cast<int>(options_.message_bytes_max));
  builder.SetResourceQuota(
      grpc::ResourceQuota("messages").Resize(static_cast<size_t>(options_.rpc_memory_bytes_max)));
  // A message is as large as it looks: what is decompressed could be a thousand times larger,
  // before anybody has asked for a token.
  for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP})
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             options_.concurrent_calls_per_connection_max);
  // Whoever connects and then says nothing holds a descriptor for no longer.
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             static_cast<int>(absl::ToInt64Milliseconds(kHandshakeTimeout)));
  // A second daemon on the same port must fail instead of taking half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);

  const std::vector<std::string> addresses = absl::StrSplit(options_.listen, ',');
  std::vector<int> ports(addresses.size(), 0);
  for (size_t i = 0; i < addresses.size(); ++i) {
    const std::string path = UnixSocketPath(addresses[i]);
    if (!path.empty()) {
      absl::StatusOr<UnixSocketClaim> claim = ClaimUnixSocket(path, options_.socket_access());
      if (!claim.ok()) return claim.status();
      socket_claims_.push_back(*std::move(claim));
      if (life_sockets_ == nullptr) {
        absl::StatusOr<std::unique_ptr<LifeSockets>> life_sockets =
            LifeSockets::Start(path + ".life", engine_.get(), &metrics_);
        if (!life_sockets.ok()) return life_sockets.status();
        life_sockets_ = *std::move(life_sockets);
        context_.life_socket = life_sockets_->path();
      }
    }
    builder.AddListeningPort(
        addresses[i], path.empty() ? TlsCredentials(*tls_) : grpc::InsecureServerCredentials(),
        &ports[i]);
  }
  {
    const OwnerOnlyUmask owner_only;
    grpc_ = builder.BuildAndStart();
  }
  if (grpc_ == nullptr) {
    const size_t failed =
        static_cast<size_t>(std::find(ports.begin(), ports.end(), 0) - ports.begin());
    return absl::FailedPreconditionError(absl::StrCat(
        "listen: cannot listen on ", failed < ports.size() ? addresses[failed] : options_.listen));
  }
  absl::Status status = life_sockets_ == nullptr
                            ? absl::OkStatus()
                            : ShareUnixSocket(life_sockets_->path(), options_.socket_access());
  for (size_t i = 0; i < addresses.size() && status.ok(); ++i) {
    const std::string path = UnixSocketPath(addresses[i]);
    if (!path.empty()) status = ShareUnixSocket(path, options_.socket_access());
    addresses_.push_back(
        !path.empty()
            ? addresses[i]
            : absl::StrCat(addresses[i].substr(0, addresses[i].rfind(':') + 1), ports[i]));
  }
  if (!status.ok()) return status;
  grpc_->GetHealthCheckService()->SetServingStatus(kServiceName, true);
  return absl::OkStatus();
}

void Server::LogStart() {
  log_.Info("started",
            {{"version", kVersion},
             {"pid", absl::StrCat(getpid())},
             {"listen", absl::StrJoin(addresses_, ",")},
             {"metrics", context_.metrics_address},
             {"backend", context_.build.backend},
             {"device", context_.build.device},
             {"threads", absl::StrCat(options_.threads)},
             {"budget_bytes", absl::StrCat(options_.engine.budget_bytes)},
             {"tenant_quota_bytes", absl::StrCat(engine_->tenant_quota_bytes())},
             {"message_bytes_max", absl::StrCat(options_.message_bytes_max)},
             {"tokens", absl::StrCat(tenants_.Get()->token_count())},
             {"calibrations", absl::StrCat(calibration_count_)},
             {"epoch", absl::StrCat(absl::Hex(context_.build.epoch, absl::kZeroPad16))}});
}

absl::Status Server::CheckFiles(const Options& options) {
  return Server(options, Hooks()).ReadFiles();
}

absl::Status Server::ReloadTokens() { return token_files_.Load(); }

absl::Status Server::ReloadCertificates() { return certificate_files_.Load(); }

absl::Status Server::LoadTokens() {
  if (options_.tokens_file.empty()) return absl::OkStatus();
  absl::StatusOr<Tenants> tenants = Tenants::Load(options_.tokens_file);
  if (!tenants.ok()) return tenants.status();
  tenants_.Set(*std::move(tenants));
  return absl::OkStatus();
}

absl::Status Server::LoadCertificates() {
  if (options_.tls_cert_file.empty()) return absl::OkStatus();
  if (tls_ != nullptr) return tls_->Refresh();
  absl::StatusOr<std::unique_ptr<TlsCopies>> tls = TlsCopies::Make(TlsFilesOf(options_));
  if (!tls.ok()) return tls.status();
  tls_ = *std::move(tls);
  return absl::OkStatus();
}

bool Server::Drain() {
  const absl::Time start = clock_.Now();
  const absl::Time deadline = start + options_.drain_timeout;
  log_.Info("draining", {{"timeout", absl::FormatDuration(options_.drain_timeout)}});
  if (pages_ != nullptr) pages_->SetReady(false);
  grpc_->GetHealthCheckService()->SetServingStatus(false);
  engine_->Drain(deadline);
  const int calls_cut = answers_.WaitUntilNone(deadline);
  absl::SleepFor(std::min(kRefusalPeriod, deadline - clock_.Now()));
  // Idle streams and what is cut are open now. gRPC closes no connection while a write to it waits
  // for its peer.
  closing_ = std::async(std::launch::async, [this] {
    grpc_->Shutdown(std::chrono::system_clock::now() + kGoodbyePeriod);
  });
  const bool closed =
      closing_.wait_for(absl::ToChronoMilliseconds(kCloseTimeout)) == std::future_status::ready;
  LogDrained(clock_.Now() - start, calls_cut);
  return closed;
}

void Server::WatchTokens() {
  const std::optional<absl::Status> status = token_files_.LoadIfNeeded();
  if (!status.has_value()) return;
  const std::string tokens = absl::StrCat(token_count());
  if (status->ok()) {
    log_.Info("tokens_changed", {{"tokens", tokens}});
  } else {
    log_.Error("tokens_refused", {{"reason", std::string(status->message())}, {"tokens", tokens}});
  }
}

void Server::WatchCertificates() {
  const std::optional<absl::Status> status = certificate_files_.LoadIfNeeded();
  if (!status.has_value()) return;
  if (status->ok()) {
    log_.Info("certificates_changed", {{"tls_cert_file", options_.tls_cert_file}});
  } else {
    log_.Error("certificates_refused", {{"reason", std::string(status->message())}});
  }
}

void Server::LogDrained(absl::Duration duration, int calls_cut) {
  // No disk tier yet: nothing that sessions hold is durable.
  const EngineTotals totals = engine_->totals();
  uint64_t bytes = 0;
  for (const EngineTotals::Bytes& held : totals.by_codec) bytes += held.stored;
  const LogFields fields = {{"seconds", absl::StrCat(absl::ToDoubleSeconds(duration))},
                            {"calls_cut", absl::StrCat(calls_cut)},
                            {"sessions_not_durable", absl::StrCat(engine_->session_count())},
                            {"tokens_not_durable", absl::StrCat(totals.committed_tokens)},
                            {"bytes_not_durable", absl::StrCat(bytes)}};
  if (calls_cut > 0) {
    log_.Warn("drained", fields);
  } else {
    log_.Info("drained", fields);
  }
}

Server::~Server() {
  expiry_.reset();
  if (closing_.valid()) {
    closing_.wait();
  } else if (grpc_ != nullptr) {
    grpc_->Shutdown(std::chrono::system_clock::now());
  }
}

}  // namespace kvdepot
