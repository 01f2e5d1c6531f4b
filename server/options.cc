#include "server/options.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <set>
#include <thread>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/types/optional.h"
#include "gpu/byte_count.h"
#include "gpu/device_name.h"
#include "server/unix_socket.h"

using kvdepot::EngineOptions;
using kvdepot::MemoryAmount;
using kvdepot::Options;

ABSL_FLAG(std::string, listen, Options().listen,
          "gRPC addresses, separated by commas: unix:///path or host:port. Empty: "
          "unix://$XDG_RUNTIME_DIR/kvdepot/kvdepotd.sock, or below /tmp/kvdepot-UID");
ABSL_FLAG(std::string, socket_group, Options().socket_group,
          "group of the Unix sockets. Empty: the process's own");
ABSL_FLAG(std::string, socket_mode, Options().socket_mode,
          "mode of the Unix sockets, octal: who may open one is a client");
ABSL_FLAG(std::string, metrics_address, Options().metrics_address,
          "host:port of /metrics, /healthz and /readyz; port 0 picks a free one. Empty: none");
ABSL_FLAG(std::string, tokens_file, Options().tokens_file,
          "file of bearer tokens, one 'TENANT SHA256HEX [client|operator]' a line. Empty: no "
          "tokens, one tenant");
ABSL_FLAG(std::string, tls_cert_file, Options().tls_cert_file,
          "PEM file of the daemon's certificate and those above it, for TCP. Empty: no TCP");
ABSL_FLAG(std::string, tls_key_file, Options().tls_key_file, "PEM file of that certificate's key");
ABSL_FLAG(std::string, tls_client_ca_file, Options().tls_client_ca_file,
          "PEM file of the authorities of clients' certificates. Empty: clients need none");
ABSL_FLAG(std::string, calibrations_dir, Options().calibrations_dir,
          "folder of calibration files, read at start. Empty: none");
ABSL_FLAG(std::string, mapping_tenants, Options().mapping_tenants,
          "tenants that may map sessions, separated by commas. Empty: none, or the one tenant of a "
          "daemon without tokens");
ABSL_FLAG(std::string, device, Options().device,
          "auto, cpu, cuda:N or a GPU's UUID. auto: the first GPU, or the CPU where there is no "
          "NVIDIA device node");
ABSL_FLAG(uint64_t, slab_bytes, Options().slab_bytes,
          "bytes in which memory of sessions is taken, a multiple of 2 MiB; on a GPU at most an "
          "eighth of the budget");
ABSL_FLAG(std::string, slab_handles, Options().slab_handles,
          "how memory of a GPU reaches processes that map sessions: descriptor, or cuda_ipc where "
          "descriptors cannot go");
ABSL_FLAG(int, threads, Options().threads,
          "threads of one Attend on the CPU. 0: as many as the machine has");
ABSL_FLAG(
    MemoryAmount, memory_budget, Options().memory_budget,
    "memory of all sessions: bytes (8GiB, 512MiB, 1073741824) or a part of what is free (25%)");
ABSL_FLAG(absl::Duration, memory_wait_timeout, Options().memory_wait_timeout,
          "how long to wait at start for memory_budget to be free, which clients of the daemon "
          "before may still map. Then the budget is what is free");
ABSL_FLAG(uint64_t, memory_budget_bytes_min, Options().memory_budget_bytes_min,
          "bytes below which the daemon does not start. 0: any budget will do");
ABSL_FLAG(uint64_t, message_bytes_max, Options().message_bytes_max,
          "bytes of one gRPC message, in or out");
ABSL_FLAG(uint64_t, rpc_memory_bytes_max, Options().rpc_memory_bytes_max,
          "bytes of messages that come or go, on all connections together");
ABSL_FLAG(int, concurrent_calls_per_connection_max, Options().concurrent_calls_per_connection_max,
          "calls in flight on one connection");
ABSL_FLAG(int, calls_per_tenant_max, Options().calls_per_tenant_max,
          "calls of one tenant that are open, streams included");
ABSL_FLAG(
    int, requests_per_second_per_tenant_max, Options().requests_per_second_per_tenant_max,
    "unary calls and messages of Append and Decode streams of one tenant a second, as many of "
    "them at once after a second of quiet. 0: any number");
ABSL_FLAG(absl::Duration, slow_request_threshold, Options().slow_request_threshold,
          "a request that takes longer is logged, with its caller's W3C traceparent. 0: none is");
ABSL_FLAG(bool, core_dumps, Options().core_dumps,
          "whether a crash may leave a core dump, which holds keys and values");
ABSL_FLAG(absl::Duration, drain_timeout, Options().drain_timeout,
          "how long the daemon waits at its end for calls in flight");
ABSL_FLAG(std::string, log_level, Options().log_level, "trace, debug, info, warn or error");

ABSL_FLAG(uint64_t, tenant_quota_bytes, EngineOptions().tenant_quota_bytes,
          "memory that one tenant may use. 0: all of the budget");
ABSL_FLAG(int, sessions_per_tenant_max, EngineOptions().sessions_per_tenant_max,
          "sessions of one tenant");
ABSL_FLAG(int, layers_max, EngineOptions().layers_max, "layers of one session");
ABSL_FLAG(uint64_t, tokens_per_session_max, EngineOptions().tokens_per_session_max,
          "tokens of one session");
ABSL_FLAG(int, name_bytes_max, EngineOptions().name_bytes_max,
          "bytes of a session's name and of its model's");
ABSL_FLAG(int, page_size_max, EngineOptions().page_size_max, "sessions in a page of ListSessions");
ABSL_FLAG(int, query_tokens_max, EngineOptions().query_tokens_max,
          "query tokens of one session in one Attend");
ABSL_FLAG(int, batch_sessions_max, EngineOptions().batch_sessions_max,
          "sessions in one Attend or Decode");
ABSL_FLAG(int, queued_requests_per_tenant_max, EngineOptions().queued_requests_per_tenant_max,
          "requests of one tenant that wait for the device or are on it");
ABSL_FLAG(uint64_t, work_piece_row_tokens, EngineOptions().work_piece_row_tokens,
          "(query token, query head, visible token) of an Attend between two turns of others");
ABSL_FLAG(
    uint64_t, brief_row_tokens_max, EngineOptions().brief_row_tokens_max,
    "(query token, query head, visible token) of an Attend that needs no hand-over to the worker");
ABSL_FLAG(uint64_t, fetch_bytes_max, EngineOptions().fetch_bytes_max, "bytes in one Fetch reply");
ABSL_FLAG(uint64_t, calibration_bytes_max, EngineOptions().calibration_bytes_max,
          "bytes of one calibration");
ABSL_FLAG(int, calibrations_per_tenant_max, EngineOptions().calibrations_per_tenant_max,
          "calibrations that one tenant may upload");
ABSL_FLAG(int, window_tokens, EngineOptions().window_tokens,
          "newest tokens that are never sealed, a multiple of 64");
ABSL_FLAG(int, decode_seal_tokens, EngineOptions().decode_seal_tokens,
          "tokens that decoding seals at a time, a multiple of 64");
ABSL_FLAG(int, prompt_tokens_min, EngineOptions().prompt_tokens_min,
          "tokens from which on an addition is a prompt, sealed up to the window");
ABSL_FLAG(int, segment_tokens_max, EngineOptions().segment_tokens_max,
          "tokens of a prompt's segments, a multiple of 64");
ABSL_FLAG(int, leases_per_tenant_max, EngineOptions().leases_per_tenant_max,
          "processes of one tenant that may map sessions");
ABSL_FLAG(absl::Duration, lease_timeout, EngineOptions().lease_timeout,
          "a lease ends without a message for this long");
ABSL_FLAG(int, directory_versions_max, EngineOptions().directory_versions_max,
          "directories of one session that a lease may have without retiring them");
ABSL_FLAG(int, buffers_per_lease_max, EngineOptions().buffers_per_lease_max,
          "buffers that a lease's process may have registered");
ABSL_FLAG(uint64_t, buffer_bytes_per_tenant_max, EngineOptions().buffer_bytes_per_tenant_max,
          "bytes that all processes of one tenant may have registered as buffers");
ABSL_FLAG(absl::Duration, unmap_timeout, EngineOptions().unmap_timeout,
          "a lease that keeps what it was asked to unmap for this long maps nothing more");
ABSL_FLAG(int, room_tokens, EngineOptions().room_tokens,
          "tokens that a mapped writer has room for in every layer unless it asks for another "
          "number");
ABSL_FLAG(int, room_tokens_max, EngineOptions().room_tokens_max,
          "tokens that a mapped writer may ask room for");
ABSL_FLAG(int, error_sample_interval, EngineOptions().error_sample_interval,
          "of how many sealed segments one is compared with its exact tokens. 0: none");

namespace kvdepot {
namespace {

// Room for what a message has beside its tensors.
constexpr uint64_t kMessageOverheadBytes = 64 << 10;

bool IsUnixAddress(absl::string_view address) { return absl::StartsWith(address, "unix:"); }

// CivetWeb would take a list as well, and other things behind the port.
bool IsHostAndPort(absl::string_view address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  return colon != absl::string_view::npos && colon > 0 && !absl::StrContains(address, ',') &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

std::string DefaultListen() {
  const char* runtime_dir = std::getenv("XDG_RUNTIME_DIR");
  const std::string directory = runtime_dir != nullptr && *runtime_dir != '\0'
                                    ? absl::StrCat(runtime_dir, "/kvdepot")
                                    : absl::StrCat("/tmp/kvdepot-", getuid());
  return absl::StrCat("unix://", directory, "/kvdepotd.sock");
}

EngineOptions EngineOptionsFromFlags() {
  EngineOptions options;
  options.tenant_quota_bytes = absl::GetFlag(FLAGS_tenant_quota_bytes);
  options.sessions_per_tenant_max = absl::GetFlag(FLAGS_sessions_per_tenant_max);
  options.layers_max = absl::GetFlag(FLAGS_layers_max);
  options.tokens_per_session_max = absl::GetFlag(FLAGS_tokens_per_session_max);
  options.name_bytes_max = absl::GetFlag(FLAGS_name_bytes_max);
  options.page_size_max = absl::GetFlag(FLAGS_page_size_max);
  options.query_tokens_max = absl::GetFlag(FLAGS_query_tokens_max);
  options.batch_sessions_max = absl::GetFlag(FLAGS_batch_sessions_max);
  options.queued_requests_per_tenant_max = absl::GetFlag(FLAGS_queued_requests_per_tenant_max);
  options.work_piece_row_tokens = absl::GetFlag(FLAGS_work_piece_row_tokens);
  options.brief_row_tokens_max = absl::GetFlag(FLAGS_brief_row_tokens_max);
  options.fetch_bytes_max = absl::GetFlag(FLAGS_fetch_bytes_max);
  options.calibration_bytes_max = absl::GetFlag(FLAGS_calibration_bytes_max);
  options.calibrations_per_tenant_max = absl::GetFlag(FLAGS_calibrations_per_tenant_max);
  options.window_tokens = absl::GetFlag(FLAGS_window_tokens);
  options.decode_seal_tokens = absl::GetFlag(FLAGS_decode_seal_tokens);
  options.prompt_tokens_min = absl::GetFlag(FLAGS_prompt_tokens_min);
  options.segment_tokens_max = absl::GetFlag(FLAGS_segment_tokens_max);
  options.leases_per_tenant_max = absl::GetFlag(FLAGS_leases_per_tenant_max);
  options.lease_timeout = absl::GetFlag(FLAGS_lease_timeout);
  options.directory_versions_max = absl::GetFlag(FLAGS_directory_versions_max);
  options.buffers_per_lease_max = absl::GetFlag(FLAGS_buffers_per_lease_max);
  options.buffer_bytes_per_tenant_max = absl::GetFlag(FLAGS_buffer_bytes_per_tenant_max);
  options.unmap_timeout = absl::GetFlag(FLAGS_unmap_timeout);
  options.room_tokens = absl::GetFlag(FLAGS_room_tokens);
  options.room_tokens_max = absl::GetFlag(FLAGS_room_tokens_max);
  options.error_sample_interval = absl::GetFlag(FLAGS_error_sample_interval);
  return options;
}

}  // namespace

uint64_t MemoryAmount::Of(uint64_t device_memory_bytes) const {
  if (bytes > 0) return bytes;
  return static_cast<uint64_t>(static_cast<double>(device_memory_bytes) * percent / 100);
}

bool AbslParseFlag(absl::string_view text, MemoryAmount* amount, std::string* error) {
  *amount = {};
  absl::string_view number = text;
  if (absl::ConsumeSuffix(&number, "%")) {
    if (absl::SimpleAtod(number, &amount->percent) && amount->percent > 0 &&
        amount->percent <= 100) {
      return true;
    }
    *error = "must be above 0% and at most 100%";
    return false;
  }
  const absl::optional<uint64_t> bytes = ParseByteCount(text);
  if (!bytes) {
    *error = absl::StrCat("must be ", kByteCountRange, ", or a part of the memory (25%)");
    return false;
  }
  amount->bytes = *bytes;
  return true;
}

std::string AbslUnparseFlag(const MemoryAmount& amount) {
  return amount.bytes > 0 ? absl::StrCat(amount.bytes) : absl::StrCat(amount.percent, "%");
}

absl::Status Options::Validate() const {
  std::vector<std::string> problems = engine.Problems();
  const auto check = [&problems](bool good, absl::string_view flag, absl::AlphaNum value,
                                 absl::AlphaNum range) {
    if (!good) problems.push_back(absl::StrCat(flag, ": ", value, ", must be ", range));
  };
  std::set<std::string> listeners;
  for (const absl::string_view address : absl::StrSplit(listen, ',')) {
    const std::string path = UnixSocketPath(address);
    check(listeners.insert(path.empty() ? std::string(address) : path).second, "listen", address,
          "named once");
    check(IsUnixAddress(address) || absl::StrContains(address, ':'), "listen", address,
          "unix:///path or host:port");
    check(IsUnixAddress(address) || (!tokens_file.empty() && !tls_cert_file.empty()), "listen",
          address, "a Unix socket unless tokens_file and tls_cert_file are set");
  }
  check(tls_key_file.empty() == tls_cert_file.empty(), "tls_key_file", tls_key_file,
        "set if and only if tls_cert_file is");
  check(tls_client_ca_file.empty() || !tls_cert_file.empty(), "tls_client_ca_file",
        tls_client_ca_file, "empty unless tls_cert_file is set");
  check(ParseSocketMode(socket_mode).has_value(), "socket_mode", socket_mode,
        "octal digits, at most 0777");
  check(metrics_address.empty() || IsHostAndPort(metrics_address), "metrics_address",
        metrics_address, "one host:port or empty");
  check(IsDeviceName(device), "device", device, kDeviceNames);
  check(slab_bytes > 0 && slab_bytes % kSlabGranularityBytes == 0, "slab_bytes", slab_bytes,
        absl::StrCat("a positive multiple of ", kSlabGranularityBytes));
  check(slab_handles == "descriptor" || slab_handles == "cuda_ipc", "slab_handles", slab_handles,
        "descriptor or cuda_ipc");
  check(threads >= 1 && threads <= 1024, "threads", threads, "1..1024, or 0 for all");
  check(memory_budget.bytes > 0 || (memory_budget.percent > 0 && memory_budget.percent <= 100),
        "memory_budget", AbslUnparseFlag(memory_budget), "bytes, or above 0% and at most 100%");
  check(
      memory_wait_timeout >= absl::ZeroDuration() && memory_wait_timeout < absl::InfiniteDuration(),
      "memory_wait_timeout", absl::FormatDuration(memory_wait_timeout), "at least 0");
  check(memory_budget.bytes == 0 || memory_budget_bytes_min <= memory_budget.bytes,
        "memory_budget_bytes_min", memory_budget_bytes_min, "at most memory_budget");
  const uint64_t int_max = std::numeric_limits<int>::max();
  check(message_bytes_max <= int_max, "message_bytes_max", message_bytes_max,
        absl::StrCat("at most ", int_max));
  const uint64_t largest_payload = std::max(engine.fetch_bytes_max, engine.calibration_bytes_max);
  check(message_bytes_max >= kMessageOverheadBytes &&
            largest_payload <= message_bytes_max - kMessageOverheadBytes,
        "message_bytes_max", message_bytes_max,
        "64 KiB more than fetch_bytes_max and than calibration_bytes_max");
  check(rpc_memory_bytes_max / 4 >= message_bytes_max, "rpc_memory_bytes_max", rpc_memory_bytes_max,
        "at least four times message_bytes_max");
  check(concurrent_calls_per_connection_max >= 1, "concurrent_calls_per_connection_max",
        concurrent_calls_per_connection_max, "at least 1");
  check(calls_per_tenant_max >= 1, "calls_per_tenant_max", calls_per_tenant_max, "at least 1");
  check(requests_per_second_per_tenant_max >= 0, "requests_per_second_per_tenant_max",
        requests_per_second_per_tenant_max, "at least 0");
  check(slow_request_threshold >= absl::ZeroDuration(), "slow_request_threshold",
        absl::FormatDuration(slow_request_threshold), "at least 0");
  check(drain_timeout >= absl::ZeroDuration(), "drain_timeout", absl::FormatDuration(drain_timeout),
        "at least 0");
  const absl::string_view levels[] = {"trace", "debug", "info", "warn", "error"};
  check(std::find(std::begin(levels), std::end(levels), log_level) != std::end(levels), "log_level",
        log_level, absl::StrJoin(levels, ", "));
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

SocketAccess Options::socket_access() const {
  return {socket_group, ParseSocketMode(socket_mode).value_or(0600)};
}

Options OptionsFromFlags() {
  Options options;
  options.listen = absl::GetFlag(FLAGS_listen);
  if (options.listen.empty()) options.listen = DefaultListen();
  options.socket_group = absl::GetFlag(FLAGS_socket_group);
  options.socket_mode = absl::GetFlag(FLAGS_socket_mode);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.tokens_file = absl::GetFlag(FLAGS_tokens_file);
  options.tls_cert_file = absl::GetFlag(FLAGS_tls_cert_file);
  options.tls_key_file = absl::GetFlag(FLAGS_tls_key_file);
  options.tls_client_ca_file = absl::GetFlag(FLAGS_tls_client_ca_file);
  options.calibrations_dir = absl::GetFlag(FLAGS_calibrations_dir);
  options.mapping_tenants = absl::GetFlag(FLAGS_mapping_tenants);
  options.device = absl::GetFlag(FLAGS_device);
  options.slab_bytes = absl::GetFlag(FLAGS_slab_bytes);
  options.slab_handles = absl::GetFlag(FLAGS_slab_handles);
  options.threads = absl::GetFlag(FLAGS_threads);
  if (options.threads == 0) {
    options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  options.memory_budget = absl::GetFlag(FLAGS_memory_budget);
  options.memory_wait_timeout = absl::GetFlag(FLAGS_memory_wait_timeout);
  options.memory_budget_bytes_min = absl::GetFlag(FLAGS_memory_budget_bytes_min);
  options.message_bytes_max = absl::GetFlag(FLAGS_message_bytes_max);
  options.rpc_memory_bytes_max = absl::GetFlag(FLAGS_rpc_memory_bytes_max);
  options.concurrent_calls_per_connection_max =
      absl::GetFlag(FLAGS_concurrent_calls_per_connection_max);
  options.calls_per_tenant_max = absl::GetFlag(FLAGS_calls_per_tenant_max);
  options.requests_per_second_per_tenant_max =
      absl::GetFlag(FLAGS_requests_per_second_per_tenant_max);
  options.slow_request_threshold = absl::GetFlag(FLAGS_slow_request_threshold);
  options.core_dumps = absl::GetFlag(FLAGS_core_dumps);
  options.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  options.log_level = absl::GetFlag(FLAGS_log_level);
  options.engine = EngineOptionsFromFlags();
  return options;
}

}  // namespace kvdepot
