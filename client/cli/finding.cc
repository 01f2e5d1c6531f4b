#include "client/cli/finding.h"

#include "absl/strings/cord.h"

namespace kvdepot::cli {
namespace {

constexpr char kCurePayload[] = "kvdepot/cure";
constexpr char kDoubtfulPayload[] = "kvdepot/doubtful";

}  // namespace

absl::Status Misconfigured(absl::string_view wrong, absl::string_view cure) {
  absl::Status status = absl::FailedPreconditionError(wrong);
  status.SetPayload(kCurePayload, absl::Cord(cure));
  return status;
}

absl::Status Doubtful(absl::string_view wrong, absl::string_view cure) {
  absl::Status status = Misconfigured(wrong, cure);
  status.SetPayload(kDoubtfulPayload, absl::Cord());
  return status;
}

bool IsDoubtful(const absl::Status& status) {
  return status.GetPayload(kDoubtfulPayload).has_value();
}

std::string CureOf(const absl::Status& status) {
  const auto cure = status.GetPayload(kCurePayload);
  return cure.has_value() ? std::string(*cure) : "";
}

}  // namespace kvdepot::cli
