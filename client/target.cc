#include "client/target.h"

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {

std::string DefaultTarget() {
  const char* runtime_dir = std::getenv("XDG_RUNTIME_DIR");
  const std::string directory = runtime_dir != nullptr && *runtime_dir != '\0'
                                    ? absl::StrCat(runtime_dir, "/kvdepot")
                                    : absl::StrCat("/tmp/kvdepot-", geteuid());
  return absl::StrCat("unix://", directory, "/kvdepotd.sock");
}

std::string TargetOf(absl::string_view named) {
  if (named.empty()) return DefaultTarget();
  return absl::StartsWith(named, "/") ? absl::StrCat("unix://", named) : std::string(named);
}

}  // namespace kvdepot
