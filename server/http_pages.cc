#include "server/http_pages.h"

#include <civetweb.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvdepot {
namespace {

constexpr std::chrono::milliseconds kStopPollInterval(10);

constexpr char kPlainText[] = "text/plain; charset=utf-8";
// What TextSerializer writes.
constexpr char kMetricsText[] = "text/plain; version=0.0.4; charset=utf-8";

int Answer(mg_connection* connection, int code, const char* type, absl::string_view body) {
  const mg_request_info* request = mg_get_request_info(connection);
  const bool is_head = std::strcmp(request->request_method, "HEAD") == 0;
  if (!is_head && std::strcmp(request->request_method, "GET") != 0) {
    code = 405;
    type = kPlainText;
    body = "only GET and HEAD\n";
  }
  mg_printf(
      connection,
      "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
      code, mg_get_response_code_text(connection, code), type, body.size());
  if (!is_head) mg_write(connection, body.data(), body.size());
  return code;
}

// Connects to host:port and leaves at once.
void Connect(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (absl::StartsWith(host, "[")) host = host.substr(1, host.size() - 2);
  char error[256] = {};
  mg_connection* const connection = mg_connect_client(
      host.c_str(), std::atoi(address.c_str() + colon + 1), /*use_ssl=*/0, error, sizeof(error));
  if (connection != nullptr) mg_close_connection(connection);
}

}  // namespace

HttpPages::HttpPages(std::function<std::string()> metrics_text)
    : metrics_text_(std::move(metrics_text)) {}

absl::StatusOr<std::unique_ptr<HttpPages>> HttpPages::Start(
    const std::string& address, std::function<std::string()> metrics_text) {
  std::unique_ptr<HttpPages> pages(new HttpPages(std::move(metrics_text)));
  mg_callbacks callbacks = {};
  callbacks.log_message = &HttpPages::OnLog;
  // A peer that says nothing holds a thread until its time is over: a probe must find one beside
  // dozens of them.
  const char* options[] = {"listening_ports",    address.c_str(), "num_threads", "32",
                           "request_timeout_ms", "1000",          nullptr};
  pages->context_ = mg_start(&callbacks, pages.get(), options);
  mg_server_port port = {};
  if (pages->context_ == nullptr || mg_get_server_ports(pages->context_, 1, &port) != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("metrics_address: cannot listen on ", address, ": ", pages->start_error_));
  }
  pages->address_ = absl::StrCat(address.substr(0, address.rfind(':') + 1), port.port);
  // '$': the whole path, not what begins with it.
  mg_set_request_handler(pages->context_, "/metrics$", &HttpPages::OnMetrics, pages.get());
  mg_set_request_handler(pages->context_, "/healthz$", &HttpPages::OnHealth, pages.get());
  mg_set_request_handler(pages->context_, "/readyz$", &HttpPages::OnReady, pages.get());
  return pages;
}

// CivetWeb looks whether it shall stop when somebody connects, and else every two seconds. How soon
// after the call of mg_stop that is, is its own matter: so we connect until it has stopped.
HttpPages::~HttpPages() {
  if (context_ == nullptr) return;
  const std::future<void> stopped = std::async(std::launch::async, [this] { mg_stop(context_); });
  do {
    Connect(address_);
  } while (stopped.wait_for(kStopPollInterval) != std::future_status::ready);
}

int HttpPages::OnMetrics(mg_connection* connection, void* pages) {
  return Answer(connection, 200, kMetricsText, static_cast<HttpPages*>(pages)->metrics_text_());
}

int HttpPages::OnHealth(mg_connection* connection, void*) {
  return Answer(connection, 200, kPlainText, "ok\n");
}

int HttpPages::OnReady(mg_connection* connection, void* pages) {
  const bool ready = static_cast<HttpPages*>(pages)->ready_;
  return Answer(connection, ready ? 200 : 503, kPlainText, ready ? "ready\n" : "not ready\n");
}

int HttpPages::OnLog(const mg_connection* connection, const char* message) {
  auto* pages = static_cast<HttpPages*>(mg_get_user_data(mg_get_context(connection)));
  // Later messages are about peers that misbehave, and come from several threads.
  if (pages->context_ == nullptr) pages->start_error_ = message;
  return 1;  // Handled: CivetWeb shall not print it.
}

}  // namespace kvdepot
