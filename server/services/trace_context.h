// The trace that a caller's request belongs to, of the metadata `traceparent`
// (www.w3.org/TR/trace-context).
#ifndef KVDEPOT_SERVER_SERVICES_TRACE_CONTEXT_H_
#define KVDEPOT_SERVER_SERVICES_TRACE_CONTEXT_H_

#include "absl/strings/string_view.h"

namespace kvdepot {

// Views of the header. Both are empty where it is not well-formed, which by the specification means
// that there is no trace.
struct TraceContext {
  absl::string_view trace_id;   // 32 lower-case hexadecimal digits.
  absl::string_view parent_id;  // 16.
};

TraceContext ParseTraceparent(absl::string_view traceparent);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_TRACE_CONTEXT_H_
