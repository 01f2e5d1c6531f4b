#include "server/services/trace_context.h"

#include <algorithm>

namespace kvdepot {
namespace {

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '0'; });
}

}  // namespace

// VERSION-TRACE_ID-PARENT_ID-FLAGS; versions after 00 may have more behind another dash.
TraceContext ParseTraceparent(absl::string_view traceparent) {
  constexpr size_t kLength = 55;
  if (traceparent.size() < kLength) return {};
  const absl::string_view version = traceparent.substr(0, 2);
  const absl::string_view trace_id = traceparent.substr(3, 32);
  const absl::string_view parent_id = traceparent.substr(36, 16);
  const absl::string_view flags = traceparent.substr(53, 2);
  if (traceparent[2] != '-' || traceparent[35] != '-' || traceparent[52] != '-') return {};
  if (!IsHex(version) || !IsHex(trace_id) || !IsHex(parent_id) || !IsHex(flags)) return {};
  if (version == "ff" || IsZero(trace_id) || IsZero(parent_id)) return {};
  if (traceparent.size() > kLength && (version == "00" || traceparent[kLength] != '-')) return {};
  return {trace_id, parent_id};
}

}  // namespace kvdepot
