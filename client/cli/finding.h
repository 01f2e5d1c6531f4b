// What one check of `kvdepot doctor` finds.
#ifndef KVDEPOT_CLIENT_CLI_FINDING_H_
#define KVDEPOT_CLIENT_CLI_FINDING_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvdepot::cli {

// How things are, in words, or what is wrong.
using Finding = absl::StatusOr<std::string>;

// `wrong` says what is the matter and how that is known, `cure` what to type or to change.
absl::Status Misconfigured(absl::string_view wrong, absl::string_view cure);
// The same of what works, and yet is hardly what was meant.
absl::Status Doubtful(absl::string_view wrong, absl::string_view cure);

bool IsDoubtful(const absl::Status& status);
// Empty: nobody knows one.
std::string CureOf(const absl::Status& status);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_FINDING_H_
