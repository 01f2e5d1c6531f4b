#include "server/unix_socket.h"

#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/server/temporary_folder.h"

namespace kvdepot {
namespace {

class UnixSocketTest : public testing::Test {
 protected:
  // A bound and listening socket.
  static int Listen(const std::string& path) {
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size());
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(fd, 1), 0);
    return fd;
  }

  const TemporaryFolder folder_;
};

TEST(UnixSocketPath, KnowsBothForms) {
  EXPECT_EQ(UnixSocketPath("unix:///run/x.sock"), "/run/x.sock");
  EXPECT_EQ(UnixSocketPath("unix:x.sock"), "x.sock");
  EXPECT_EQ(UnixSocketPath("127.0.0.1:80"), "");
  EXPECT_EQ(UnixSocketPath("unix-abstract:x"), "");
}

TEST_F(UnixSocketTest, CreatesThePrivateFolder) {
  ASSERT_TRUE(ClaimUnixSocket(folder_.path() + "/new/x.sock").ok());
  struct stat info = {};
  ASSERT_EQ(stat((folder_.path() + "/new").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST(SocketMode, IsOctal) {
  EXPECT_EQ(ParseSocketMode("0600"), 0600u);
  EXPECT_EQ(ParseSocketMode("660"), 0660u);
  EXPECT_EQ(ParseSocketMode("0777"), 0777u);
  for (const char* const wrong : {"", "0888", "rw", "1000", "-1", "07777777777777777777777"})
    EXPECT_FALSE(ParseSocketMode(wrong).has_value()) << wrong;
}

TEST_F(UnixSocketTest, SharesFolderAndSocketWithAGroup) {
  // A group that this process has, so that it may give files to it.
  const group* const own = getgrgid(getegid());
  if (own == nullptr) GTEST_SKIP() << "this process's group has no name";
  const SocketAccess access{own->gr_name, 0660};
  const std::string path = folder_.path() + "/new/x.sock";
  ASSERT_TRUE(ClaimUnixSocket(path, access).ok());
  close(Listen(path));
  ASSERT_TRUE(ShareUnixSocket(path, access).ok());
  struct stat info = {};
  ASSERT_EQ(stat((folder_.path() + "/new").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0750u);
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
  EXPECT_EQ(info.st_gid, getegid());
  EXPECT_EQ(ShareUnixSocket(path, {"no-such-group", 0660}).message(),
            "socket_group: no-such-group, is no group of this machine");
}

TEST_F(UnixSocketTest, RemovesAStaleSocketOnly) {
  const std::string path = folder_.path() + "/x.sock";
  const int fd = Listen(path);
  EXPECT_FALSE(ClaimUnixSocket(path).ok());
  close(fd);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  EXPECT_TRUE(ClaimUnixSocket(path).ok());
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_F(UnixSocketTest, APathHasOneOwnerAtATime) {
  const std::string path = folder_.path() + "/x.sock";
  {
    const auto first = ClaimUnixSocket(path);
    ASSERT_TRUE(first.ok()) << first.status();
    // Also while nothing is bound: two daemons that start together, or a socket file removed by
    // hand.
    EXPECT_EQ(ClaimUnixSocket(path).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_TRUE(ClaimUnixSocket(path).ok());
}

TEST_F(UnixSocketTest, LeavesOtherFilesAlone) {
  const std::string path = folder_.path() + "/x.sock";
  std::ofstream(path) << "precious";
  EXPECT_FALSE(ClaimUnixSocket(path).ok());
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
}

TEST_F(UnixSocketTest, RefusesLongPaths) {
  EXPECT_FALSE(ClaimUnixSocket(folder_.path() + "/" + std::string(100, 'x')).ok());
}

TEST_F(UnixSocketTest, UmaskMakesSocketsPrivate) {
  const std::string path = folder_.path() + "/x.sock";
  int fd = -1;
  {
    const OwnerOnlyUmask owner_only;
    fd = Listen(path);
  }
  struct stat info = {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  close(fd);
}

}  // namespace
}  // namespace kvdepot
