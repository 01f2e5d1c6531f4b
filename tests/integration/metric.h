// One number from a daemon's /metrics.
#ifndef KVDEPOT_TESTS_INTEGRATION_METRIC_H_
#define KVDEPOT_TESTS_INTEGRATION_METRIC_H_

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/http_get.h"
#include "gtest/gtest.h"

namespace kvdepot {

// `series` with its labels, as the page writes it. Fails the test if there is none.
inline double Metric(const std::string& metrics_address, const std::string& series) {
  const absl::StatusOr<std::string> page =
      cli::HttpGet(metrics_address, "/metrics", absl::Now() + absl::Seconds(30));
  EXPECT_TRUE(page.ok()) << page.status();
  if (!page.ok()) return 0;
  const std::string line = absl::StrCat("\n", series, " ");
  const size_t found = page->find(line);
  EXPECT_NE(found, std::string::npos) << series;
  return found == std::string::npos ? 0 : std::atof(page->c_str() + found + line.size());
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_METRIC_H_
