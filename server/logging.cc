#include "server/logging.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvdepot {
namespace {

bool NeedsQuotes(absl::string_view value) {
  for (const unsigned char c : value) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7F) return true;
  }
  return value.empty();
}

// Names that clients chose must not be able to start a line of their own.
void AppendQuoted(absl::string_view value, std::string& line) {
  line.push_back('"');
  for (const char c : value) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      line.push_back('\\');
      line.push_back(c);
    } else if (c == '\n') {
      line += "\\n";
    } else if (code < ' ' || code == 0x7F) {
      absl::StrAppend(&line, "\\x", absl::Hex(code, absl::kZeroPad2));
    } else {
      line.push_back(c);
    }
  }
  line.push_back('"');
}

}  // namespace

std::string FormatLogFields(const LogFields& fields) {
  std::string line;
  for (const LogField& field : fields) {
    if (!line.empty()) line.push_back(' ');
    absl::StrAppend(&line, field.key, "=");
    if (NeedsQuotes(field.value)) {
      AppendQuoted(field.value, line);
    } else {
      line += field.value;
    }
  }
  return line;
}

Log::Log(const std::string& level) : Log(std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
  SetLevel(level);
}

Log::Log(std::shared_ptr<spdlog::sinks::sink> sink)
    : logger_(std::make_shared<spdlog::logger>("kvdepotd", std::move(sink))) {
  logger_->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
  logger_->flush_on(spdlog::level::info);
}

Log::~Log() = default;

void Log::SetLevel(const std::string& level) { logger_->set_level(spdlog::level::from_str(level)); }

void Log::Info(absl::string_view event, const LogFields& fields) {
  logger_->info("event={} {}", std::string(event), FormatLogFields(fields));
}

void Log::Warn(absl::string_view event, const LogFields& fields) {
  logger_->warn("event={} {}", std::string(event), FormatLogFields(fields));
}

void Log::Error(absl::string_view event, const LogFields& fields) {
  logger_->error("event={} {}", std::string(event), FormatLogFields(fields));
}

void Log::InfoBounded(absl::string_view event, LogFields fields) {
  uint64_t suppressed = 0;
  {
    MutexLock lock(mutex_);
    const int64_t second = absl::ToUnixSeconds(absl::Now());
    Bound& bound = bounds_[std::string(event)];
    if (second != bound.second) {
      bound.second = second;
      bound.lines_in_second = 0;
    }
    if (++bound.lines_in_second > kBoundedLinesPerSecond) {
      ++bound.suppressed;
      return;
    }
    suppressed = std::exchange(bound.suppressed, 0);
  }
  if (suppressed > 0) fields.push_back({"suppressed", absl::StrCat(suppressed)});
  Info(event, fields);
}

}  // namespace kvdepot
