// Processes that connect a socket and send a descriptor of themselves, or of somebody else.
#include "server/peer_process.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {
namespace {

FileDescriptor PidfdOf(pid_t pid) {
  return FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

bool IsReadable(const FileDescriptor& descriptor) {
  pollfd polled = {descriptor.get(), POLLIN, 0};
  return poll(&polled, 1, 0) == 1;
}

class PeerProcessTest : public testing::Test {
 protected:
  PeerProcessTest() : listener_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    address_.sun_family = AF_UNIX;
    // Without a path the kernel chooses an address that is no file.
    EXPECT_EQ(bind(listener_.get(), Address(), sizeof(address_.sun_family)), 0);
    EXPECT_EQ(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address_), &address_bytes_),
              0);
    EXPECT_EQ(listen(listener_.get(), 8), 0);
  }
  ~PeerProcessTest() override { End(); }

  const sockaddr* Address() const { return reinterpret_cast<const sockaddr*>(&address_); }

  FileDescriptor Connect() const {
    FileDescriptor connected(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(connected.get(), Address(), address_bytes_), 0);
    return connected;
  }
  FileDescriptor Accept() const {
    return FileDescriptor(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }
  // A process that connects and then does nothing; the daemon's end of its socket.
  FileDescriptor Spawn() {
    child_ = fork();
    if (child_ == 0) {
      const int connected = socket(AF_UNIX, SOCK_SEQPACKET, 0);
      if (connect(connected, Address(), address_bytes_) != 0) _exit(1);
      for (;;) pause();
    }
    return Accept();
  }
  void End() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
    child_ = 0;
  }

  const FileDescriptor listener_;
  sockaddr_un address_ = {};
  socklen_t address_bytes_ = sizeof(address_);
  pid_t child_ = 0;
};

TEST_F(PeerProcessTest, IsReadableOnceTheProcessHasEnded) {
  const FileDescriptor socket = Spawn();
  const absl::StatusOr<FileDescriptor> process = IdentifyPeer(socket.get(), PidfdOf(child_));
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_FALSE(IsReadable(*process));
  End();
  EXPECT_TRUE(IsReadable(*process));
}

TEST_F(PeerProcessTest, ThePidfdOfAnotherProcess) {
  const FileDescriptor socket = Spawn();
  const absl::Status status = IdentifyPeer(socket.get(), PidfdOf(getpid())).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(absl::StartsWith(status.message(), "pidfd: of process "));
}

// A socket that was connected by this process and whose other end, in a child, is the same socket:
// who connected counts, not who holds it.
TEST_F(PeerProcessTest, WhoInheritedTheSocketIsNotItsOwner) {
  const FileDescriptor connected = Connect();
  const FileDescriptor accepted = Accept();
  child_ = fork();
  while (child_ == 0) pause();
  EXPECT_TRUE(absl::IsInvalidArgument(IdentifyPeer(accepted.get(), PidfdOf(child_)).status()));
  EXPECT_TRUE(IdentifyPeer(accepted.get(), PidfdOf(getpid())).ok());
}

TEST_F(PeerProcessTest, NoDescriptorOrOneOfSomethingElse) {
  const FileDescriptor socket = Spawn();
  EXPECT_TRUE(absl::IsInvalidArgument(IdentifyPeer(socket.get(), FileDescriptor()).status()));
  EXPECT_EQ(IdentifyPeer(socket.get(), FileDescriptor(dup(STDERR_FILENO))).status().message(),
            "pidfd: another kind of descriptor, must be a pidfd");
}

}  // namespace
}  // namespace kvdepot
