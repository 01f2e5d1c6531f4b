// A process that maps a session and does nothing more: lease_holder ADDRESS SESSION_ID [fork]. With
// `fork` a child inherits its life socket and its mappings. Prints the child's pid (0: none) once
// the session is mapped, and waits for its end.
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/mapped_session.h"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  auto lease = kvdepot::Lease::Open(argv[1], {}, deadline);
  if (!lease.ok()) return 1;
  const auto session =
      kvdepot::MappedSession::Open(*lease, argv[2], kvdepot::MappedSession::Options(), deadline);
  if (!session.ok()) return 1;
  pid_t child = 0;
  if (argc > 3 && std::strcmp(argv[3], "fork") == 0) {
    child = fork();
    while (child == 0) pause();
  }
  std::printf("%d\n", child);
  std::fflush(stdout);
  while (true) pause();
}
