// Bytes and descriptors through a pair of sockets, and peers that keep to none of the rules.
#include "gpu/descriptor_packet.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {
namespace {

class DescriptorPacketTest : public testing::Test {
 protected:
  DescriptorPacketTest() {
    int pair[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    sender_ = FileDescriptor(pair[0]);
    receiver_ = FileDescriptor(pair[1]);
    file_ = FileDescriptor(memfd_create("packet", MFD_CLOEXEC));
  }

  static bool SameFile(const FileDescriptor& a, const FileDescriptor& b) {
    struct stat info_a = {};
    struct stat info_b = {};
    return fstat(a.get(), &info_a) == 0 && fstat(b.get(), &info_b) == 0 &&
           info_a.st_ino == info_b.st_ino;
  }

  // One packet with any number of descriptors, which SendPacket never sends.
  void SendMany(const std::vector<int>& descriptors) {
    char byte = 'x';
    iovec part = {&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
    EXPECT_EQ(sendmsg(sender_.get(), &message, MSG_NOSIGNAL), 1);
  }

  // The number that the next descriptor of this process will have: the same again if none leaked.
  static int NextDescriptor() { return FileDescriptor(dup(STDERR_FILENO)).get(); }

  FileDescriptor sender_;
  FileDescriptor receiver_;
  FileDescriptor file_;
};

TEST_F(DescriptorPacketTest, PacketsArriveOneByOneWithTheirDescriptors) {
  ASSERT_TRUE(SendPacket(sender_.get(), "first", file_.get()).ok());
  ASSERT_TRUE(SendPacket(sender_.get(), std::string("se\0cond", 7), -1).ok());
  const absl::StatusOr<DescriptorPacket> first = ReceivePacket(receiver_.get());
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->bytes, "first");
  EXPECT_TRUE(SameFile(first->descriptor, file_));
  EXPECT_NE(fcntl(first->descriptor.get(), F_GETFD) & FD_CLOEXEC, 0);
  const absl::StatusOr<DescriptorPacket> second = ReceivePacket(receiver_.get());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->bytes, std::string("se\0cond", 7));
  EXPECT_FALSE(second->descriptor);
}

TEST_F(DescriptorPacketTest, ThereIsNothingYet) {
  EXPECT_TRUE(absl::IsUnavailable(ReceivePacket(receiver_.get()).status()));
}

TEST_F(DescriptorPacketTest, AClosedEnd) {
  ASSERT_TRUE(SendPacket(sender_.get(), "last", -1).ok());
  sender_ = FileDescriptor();
  // What was sent before is read first.
  EXPECT_EQ(ReceivePacket(receiver_.get())->bytes, "last");
  EXPECT_EQ(ReceivePacket(receiver_.get())->bytes, "");
  EXPECT_TRUE(absl::IsUnavailable(SendPacket(receiver_.get(), "x", -1)));
}

TEST_F(DescriptorPacketTest, APeerThatDoesNotReadIsNotWaitedFor) {
  absl::Status status;
  int sent = 0;
  while (status.ok() && sent < 100000) {
    status = SendPacket(sender_.get(), "packet", file_.get());
    ++sent;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status << " after " << sent;
}

TEST_F(DescriptorPacketTest, TheLongestPacketAndOneThatIsLonger) {
  ASSERT_TRUE(SendPacket(sender_.get(), std::string(kPacketBytesMax, 'a'), -1).ok());
  EXPECT_EQ(ReceivePacket(receiver_.get())->bytes.size(), kPacketBytesMax);
  ASSERT_TRUE(SendPacket(sender_.get(), std::string(kPacketBytesMax + 1, 'a'), -1).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(ReceivePacket(receiver_.get()).status()));
}

TEST_F(DescriptorPacketTest, MoreThanOneDescriptorIsRefusedAndNoneIsKept) {
  const int next = NextDescriptor();
  for (const size_t count : {2, 3, 8}) {
    SendMany(std::vector<int>(count, file_.get()));
    EXPECT_TRUE(absl::IsInvalidArgument(ReceivePacket(receiver_.get()).status())) << count;
    EXPECT_EQ(NextDescriptor(), next) << count;
  }
}

// Whose close would wait an hour for a peer that does not read.
TEST_F(DescriptorPacketTest, ASocketsCloseDoesNotWait) {
  const FileDescriptor lingering(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const linger hour = {1, 3600};
  ASSERT_EQ(setsockopt(lingering.get(), SOL_SOCKET, SO_LINGER, &hour, sizeof(hour)), 0);
  ASSERT_TRUE(SendPacket(sender_.get(), "x", lingering.get()).ok());
  const absl::StatusOr<DescriptorPacket> packet = ReceivePacket(receiver_.get());
  ASSERT_TRUE(packet.ok()) << packet.status();
  linger now = hour;
  socklen_t size = sizeof(now);
  ASSERT_EQ(getsockopt(packet->descriptor.get(), SOL_SOCKET, SO_LINGER, &now, &size), 0);
  EXPECT_EQ(now.l_onoff, 0);
}

}  // namespace
}  // namespace kvdepot
