// The daemon: builds every part in order, listens, drains, and destroys in reverse.
#ifndef KVDEPOT_SERVER_SERVER_H_
#define KVDEPOT_SERVER_SERVER_H_

#include <grpcpp/server.h>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gpu/backend.h"
#include "gpu/backend_factory.h"
#include "server/calibration_store.h"
#include "server/clock.h"
#include "server/current_tenants.h"
#include "server/engine.h"
#include "server/expiry_thread.h"
#include "server/http_pages.h"
#include "server/logging.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/pending_answers.h"
#include "server/services/kv_depot_service.h"
#include "server/services/life_sockets.h"
#include "server/services/service_context.h"
#include "server/tenant_limits.h"
#include "server/tls.h"
#include "server/unix_socket.h"
#include "server/watched_files.h"

namespace kvdepot {

class Server {
 public:
  struct Hooks {
    // Makes the backend.
    std::function<absl::StatusOr<std::unique_ptr<Backend>>(const BackendOptions&)> make_backend =
        MakeBackend;
    // The device has failed: Drain and end. Called once, by the thread that found out, which it
    // must not hold up.
    std::function<void()> on_fault;
    // Lets time pass while the daemon waits for memory. False: end instead.
    std::function<bool(absl::Duration)> pause = [](absl::Duration duration) {
      absl::SleepFor(duration);
      return true;
    };
  };

  // Serves when it returns. The error says which option or file is the reason; CANCELLED:
  // hooks.pause asked for the end. `options` are valid.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options, const Hooks& hooks);
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options) {
    return Start(options, Hooks());
  }
  // Calls still open are cancelled.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Whether the files that `options` name can be read. INVALID_ARGUMENT as Start.
  static absl::Status CheckFiles(const Options& options);

  // Reads the token file again, as happens by itself within seconds of a change: a token that is
  // gone is unknown to the next call. INVALID_ARGUMENT: the file is wrong, and the tokens stay as
  // they are.
  absl::Status ReloadTokens();
  // The files of certificates likewise, for connections that follow.
  absl::Status ReloadCertificates();

  // Tells probes and clients, refuses new work, lets finish what runs until its answers are out (up
  // to options.drain_timeout), then closes connections. Once. False: a peer that does not read
  // keeps one open, and would hold up ~Server until it reads or goes.
  bool Drain();

  // OK, or why the device cannot be used any more.
  absl::Status fault() const { return engine_->health(); }

  Log& log() { return log_; }
  size_t token_count() const { return tenants_.Get()->token_count(); }

  // gRPC addresses with real ports, as clients dial them.
  const std::vector<std::string>& addresses() const { return addresses_; }
  // host:port; empty if switched off.
  const std::string& metrics_address() const { return context_.metrics_address; }

 private:
  Server(const Options& options, const Hooks& hooks);

  absl::Status ReadFiles();
  absl::Status MakeEngine();
  absl::StatusOr<uint64_t> FindBudget(const Backend& backend);
  absl::Status StartPages();
  absl::Status Listen();
  // Read again what has changed. Of the expiry thread.
  void WatchTokens();
  void WatchCertificates();
  // Whatever the files are like now.
  absl::Status LoadTokens();
  absl::Status LoadCertificates();
  void LogStart();
  void LogDrained(absl::Duration duration, int calls_cut);

  // In the order in which they are built; each uses only those before it.
  Options options_;
  const Hooks hooks_;
  Log log_;
  RealClock clock_;
  Metrics metrics_;
  CurrentTenants tenants_;
  WatchedFiles token_files_;
  // Null: no TLS. gRPC reads what is in it.
  std::unique_ptr<TlsCopies> tls_;
  WatchedFiles certificate_files_;
  TenantLimits limits_;
  PendingAnswers answers_;
  CalibrationStore calibrations_;
  int calibration_count_ = 0;
  std::unique_ptr<Engine> engine_;
  ServiceContext context_;
  KvDepotService service_;
  std::unique_ptr<HttpPages> pages_;
  std::vector<std::string> addresses_;
  // Outlive the server, which removes its sockets when it ends.
  std::vector<UnixSocketClaim> socket_claims_;
  // Null without a Unix socket among the listeners: leases are for processes on this machine.
  std::unique_ptr<LifeSockets> life_sockets_;
  std::unique_ptr<grpc::Server> grpc_;
  // Of Drain, which closes connections on another thread.
  std::future<void> closing_;
  std::unique_ptr<ExpiryThread> expiry_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVER_H_
