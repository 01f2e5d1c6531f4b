// One-line structured log on stderr, in logfmt:
//
//   2026-11-24T08:00:00.123Z info event=refused method=Append tenant=default code=OUT_OF_RANGE
//   message="..."
//
// Values never hold tokens, keys, values or queries. Thread-safe.
#ifndef KVDEPOT_SERVER_LOGGING_H_
#define KVDEPOT_SERVER_LOGGING_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/mutex.h"

namespace spdlog {
class logger;
namespace sinks {
class sink;
}
}  // namespace spdlog

namespace kvdepot {

struct LogField {
  absl::string_view key;
  std::string value;
};
using LogFields = std::vector<LogField>;

// "a=1 b=\"two words\"": values are quoted where a space, quote, '=' or control character asks for
// it.
std::string FormatLogFields(const LogFields& fields);

class Log {
 public:
  // To stderr. `level`: trace, debug, info, warn or error.
  explicit Log(const std::string& level);
  // For tests.
  explicit Log(std::shared_ptr<spdlog::sinks::sink> sink);
  ~Log();

  void SetLevel(const std::string& level);

  void Info(absl::string_view event, const LogFields& fields);
  void Warn(absl::string_view event, const LogFields& fields);
  void Error(absl::string_view event, const LogFields& fields);

  // As Info, for events that clients cause: of each event at most kBoundedLinesPerSecond a second,
  // so that one hides no other. The first line after a gap says how many were left out
  // (`suppressed=`).
  void InfoBounded(absl::string_view event, LogFields fields);

  static constexpr int kBoundedLinesPerSecond = 20;

 private:
  std::shared_ptr<spdlog::logger> logger_;
  struct Bound {
    int64_t second = 0;
    int lines_in_second = 0;
    uint64_t suppressed = 0;
  };

  Mutex mutex_;
  // By event; there are few.
  std::map<std::string, Bound> bounds_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_LOGGING_H_
