// The one HTTP listener: /metrics for Prometheus, /healthz and /readyz for probes.
//
// /healthz answers 200 as long as the process answers at all; /readyz answers 200 while the daemon
// takes work, 503 before and after. Apart from gRPC, so that the API may stay on its Unix socket.
#ifndef KVDEPOT_SERVER_HTTP_PAGES_H_
#define KVDEPOT_SERVER_HTTP_PAGES_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct mg_connection;
struct mg_context;

namespace kvdepot {

class HttpPages {
 public:
  // Listens on `address` (host:port; port 0 picks a free one), not ready yet. `metrics_text` is
  // called for each scrape, from the listener's threads. FAILED_PRECONDITION: the address cannot be
  // had.
  static absl::StatusOr<std::unique_ptr<HttpPages>> Start(
      const std::string& address, std::function<std::string()> metrics_text);
  ~HttpPages();
  HttpPages(const HttpPages&) = delete;
  HttpPages& operator=(const HttpPages&) = delete;

  void SetReady(bool ready) { ready_ = ready; }
  // host:port with the real port.
  const std::string& address() const { return address_; }

 private:
  explicit HttpPages(std::function<std::string()> metrics_text);

  // CivetWeb's callbacks; the last argument, or the context's user data, is the object.
  static int OnMetrics(mg_connection* connection, void* pages);
  static int OnHealth(mg_connection* connection, void* pages);
  static int OnReady(mg_connection* connection, void* pages);
  static int OnLog(const mg_connection* connection, const char* message);

  const std::function<std::string()> metrics_text_;
  std::atomic<bool> ready_{false};
  std::string address_;
  // Why mg_start failed; written by it alone.
  std::string start_error_;
  mg_context* context_ = nullptr;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_HTTP_PAGES_H_
