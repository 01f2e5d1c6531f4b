// A kvdepotd in a process of its own, on a Unix socket in a folder of its own, which can be killed
// and started again.
#ifndef KVDEPOT_TESTS_INTEGRATION_DAEMON_PROCESS_H_
#define KVDEPOT_TESTS_INTEGRATION_DAEMON_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "client/lease.h"
#include "tests/server/temporary_folder.h"

namespace kvdepot {

class DaemonProcess {
 public:
  // Starts it; `flags` beside those of the socket and of what would be in other tests' way.
  explicit DaemonProcess(std::vector<std::string> flags);
  // Kills it.
  ~DaemonProcess();
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  std::string target() const;

  // After Kill.
  void Start();
  // By SIGKILL; nothing if it was not started since.
  void Kill();

  // Once it answers. Fails the test and returns null where it does not within 20 seconds.
  std::shared_ptr<Lease> OpenLease() const;
  // Id of a new session named `name` of test_daemon.h's shape, fp32 and raw.
  std::string CreateSession(const std::string& name) const;

 private:
  const std::vector<std::string> flags_;
  const TemporaryFolder folder_;
  pid_t process_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_DAEMON_PROCESS_H_
