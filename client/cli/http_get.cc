#include "client/cli/http_get.h"

#include <civetweb.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace kvdepot::cli {
namespace {

constexpr int kStatusOk = 200;
// A metrics page has some hundred lines.
constexpr size_t kPageBytesMax = size_t{4} << 20;

using HttpConnection = std::unique_ptr<mg_connection, decltype(&mg_close_connection)>;

absl::StatusOr<std::string> ReadPage(mg_connection* connection, absl::Time deadline) {
  std::string page;
  char part[16384];
  while (page.size() < kPageBytesMax && absl::Now() < deadline) {
    const int count = mg_read(connection, part, sizeof(part));
    if (count < 0) return absl::UnavailableError("the connection broke within the page");
    if (count == 0) return page;
    page.append(part, count);
  }
  return absl::UnavailableError("the page does not end");
}

}  // namespace

absl::StatusOr<std::string> HttpGet(absl::string_view address, absl::string_view path,
                                    absl::Time deadline) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(absl::StrCat("'", address, "' is not host:port"));
  }
  absl::string_view host = address.substr(0, colon);
  absl::ConsumePrefix(&host, "[");
  absl::ConsumeSuffix(&host, "]");

  char problem[256] = "";
  const HttpConnection connection(
      mg_connect_client(std::string(host).c_str(), port, /*use_ssl=*/0, problem, sizeof(problem)),
      &mg_close_connection);
  if (connection == nullptr) return absl::UnavailableError(absl::StrCat(address, ": ", problem));
  mg_printf(connection.get(), "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", std::string(path).c_str(),
            std::string(host).c_str());
  const int64_t left_ms = std::max<int64_t>(absl::ToInt64Milliseconds(deadline - absl::Now()), 1);
  if (mg_get_response(connection.get(), problem, sizeof(problem), static_cast<int>(left_ms)) < 0) {
    return absl::UnavailableError(absl::StrCat(address, ": ", problem));
  }
  const int status_code = mg_get_response_info(connection.get())->status_code;
  if (status_code != kStatusOk) {
    return absl::UnavailableError(absl::StrCat(address, path, " answers ", status_code));
  }
  return ReadPage(connection.get(), deadline);
}

}  // namespace kvdepot::cli
