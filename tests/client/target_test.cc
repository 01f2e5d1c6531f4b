#include "client/target.h"

#include <cstdlib>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

TEST(TargetTest, APathIsAUnixSocketAndTheRestIsGrpcs) {
  EXPECT_EQ(TargetOf("/run/kvdepotd.sock"), "unix:///run/kvdepotd.sock");
  EXPECT_EQ(TargetOf("unix:relative.sock"), "unix:relative.sock");
  EXPECT_EQ(TargetOf("[::1]:7070"), "[::1]:7070");
}

TEST(TargetTest, NothingIsWhereADaemonOfTheSameUserListens) {
  ASSERT_EQ(setenv("XDG_RUNTIME_DIR", "/run/user/7", 1), 0);
  EXPECT_EQ(TargetOf(""), "unix:///run/user/7/kvdepot/kvdepotd.sock");
  ASSERT_EQ(unsetenv("XDG_RUNTIME_DIR"), 0);
  EXPECT_EQ(TargetOf(""), DefaultTarget());
}

}  // namespace
}  // namespace kvdepot
