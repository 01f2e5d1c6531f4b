// What the daemon tells systemd, where that started it (sd_notify(3), "Notes": the protocol is
// stable, and meant to be spoken without the library).
#ifndef KVDEPOT_SERVER_SERVICE_MANAGER_H_
#define KVDEPOT_SERVER_SERVICE_MANAGER_H_

#include <string>
#include <utility>

namespace kvdepot {

class ServiceManager {
 public:
  // Of the environment: $NOTIFY_SOCKET, an absolute path or '@' and an abstract name. Without it
  // nothing is told to anybody.
  ServiceManager();
  explicit ServiceManager(std::string socket) : socket_(std::move(socket)) {}

  // It serves; `status` is shown by `systemctl status`.
  void Ready(const std::string& status) const;
  // It reads its settings again: Ready follows.
  void Reloading() const;
  void Stopping() const;

 private:
  void Send(const std::string& state) const;

  const std::string socket_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICE_MANAGER_H_
