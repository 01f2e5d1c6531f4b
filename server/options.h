// Every setting of the daemon. Flags of the same names are bound to it in options.cc and nowhere
// else.
#ifndef KVDEPOT_SERVER_OPTIONS_H_
#define KVDEPOT_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gpu/slab_pool.h"
#include "server/engine_options.h"
#include "server/unix_socket.h"

namespace kvdepot {

// An amount of memory: "512MiB", "8GiB", "1073741824" (bytes) or "25%" of the device's memory.
struct MemoryAmount {
  uint64_t bytes = 0;  // 0: `percent` counts.
  double percent = 0;

  uint64_t Of(uint64_t device_memory_bytes) const;
};
// What Abseil's flags call.
bool AbslParseFlag(absl::string_view text, MemoryAmount* amount, std::string* error);
std::string AbslUnparseFlag(const MemoryAmount& amount);

struct Options {
  // gRPC addresses, separated by commas: unix:///path or host:port. Empty:
  // unix://DIRECTORY/kvdepotd.sock, where DIRECTORY is $XDG_RUNTIME_DIR/kvdepot, or
  // /tmp/kvdepot-UID where that variable is not set.
  std::string listen;
  // Group and mode (octal) of Unix sockets: who may open one is a client. Group empty: the
  // process's own.
  std::string socket_group;
  std::string socket_mode = "0600";
  // host:port of /metrics, /healthz and /readyz; port 0 picks a free one. Empty: none.
  std::string metrics_address = "127.0.0.1:9464";
  // One "TENANT SHA256HEX ROLE" a line (tenants.h). Empty: no tokens; whoever reaches the Unix
  // socket is the tenant `default`, and there is no other listener. Read again when it changes.
  std::string tokens_file;
  // PEM files of TLS, which every TCP listener uses (tls.h): the daemon's certificate and key, and
  // the authorities of clients' certificates; the last empty: clients need none. Read again when
  // they change.
  std::string tls_cert_file;
  std::string tls_key_file;
  std::string tls_client_ca_file;
  // Folder of calibration files, read at start. Empty: none.
  std::string calibrations_dir;
  // Tenants that may map sessions, separated by commas: a mapping shows whole slabs of its tenant.
  // Empty: nobody, but for the one tenant of a daemon without tokens.
  std::string mapping_tenants;

  // "auto": the first GPU, or the CPU where there is no NVIDIA device node. "cpu", "cuda:N", or a
  // GPU's UUID.
  std::string device = "auto";
  // What memory of sessions is taken in and cut from, a multiple of 2 MiB; on a GPU at most an
  // eighth of the budget. A tenant takes two at least, for sealed tokens and for tails. On the CPU
  // an unused page of one takes no memory.
  uint64_t slab_bytes = kSlabBytesDefault;
  // How slabs of a GPU reach processes that map them. "descriptor": counted by the driver, sealed
  // slabs for reading only. "cuda_ipc": a handle in the reply, where descriptors cannot go.
  std::string slab_handles = "descriptor";
  // Threads of one Attend on the CPU. 0: as many as the machine has.
  int threads = 0;
  // Memory of sessions: bytes, or a part of what a GPU has free or the CPU's machine has. By
  // default half: others use it as well. SetBudget changes it.
  MemoryAmount memory_budget{0, 50};
  // Where less memory is free than memory_budget asks for, because clients of the daemon before
  // still map what it had, or others use the device: how long to wait for it at start. After that
  // the budget is what is free, which SetBudget may raise later.
  absl::Duration memory_wait_timeout = absl::ZeroDuration();
  // With a smaller budget than this the daemon does not start. memory_budget's own bytes: with all
  // of it or not at all. 0: any will do.
  uint64_t memory_budget_bytes_min = 0;

  // A gRPC message, in or out. 32 MiB carry the fp32 outputs of 1024 query tokens of 32 heads of
  // 128 with room to spare, and their queries in any dtype.
  uint64_t message_bytes_max = uint64_t{32} << 20;
  // What gRPC may take for messages that come or go, on all connections together, before anybody
  // has looked at a token. Where it is used up, connections wait, and then some are closed.
  uint64_t rpc_memory_bytes_max = uint64_t{1} << 30;
  // Calls in flight on one connection; further ones wait in the client.
  int concurrent_calls_per_connection_max = 256;
  // Calls that a tenant may have open, streams included, on all its connections.
  int calls_per_tenant_max = 1024;
  // Unary calls and messages of Append and Decode streams that a tenant may send a second, as many
  // of them at once after a second of quiet. 0: any number.
  int requests_per_second_per_tenant_max = 0;
  // A request that takes longer is logged, with its caller's trace. 0: none is.
  absl::Duration slow_request_threshold = absl::Seconds(1);
  // Whether a crash may leave a core dump, which holds keys and values of conversations.
  bool core_dumps = false;
  // How long the daemon waits at its end for calls in flight. Kubernetes kills after 30 s.
  absl::Duration drain_timeout = absl::Seconds(20);
  // trace, debug, info, warn, error.
  std::string log_level = "info";

  // budget_bytes is no flag: it is set from memory_budget once the device is known.
  EngineOptions engine;

  // Of socket_group and socket_mode, which is valid.
  SocketAccess socket_access() const;

  // INVALID_ARGUMENT that lists every problem, one a line, naming flag, value and range.
  absl::Status Validate() const;
};

// From the parsed command line, with `listen` and `threads` filled in.
Options OptionsFromFlags();

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_OPTIONS_H_
