// INVALID_ARGUMENT in the form that status_convert.h expects: "field: value, must be limit".
#ifndef KVDEPOT_SERVER_SERVICES_FIELD_ERROR_H_
#define KVDEPOT_SERVER_SERVICES_FIELD_ERROR_H_

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

inline absl::Status FieldError(absl::string_view field, const absl::AlphaNum& value,
                               const absl::AlphaNum& limit) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, ", must be ", limit));
}

// The same error about a field inside `parent`: "layers[2]" + "head_dim: ..." is
// "layers[2].head_dim: ...".
inline absl::Status Inside(absl::string_view parent, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(parent, ".", status.message()));
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_FIELD_ERROR_H_
