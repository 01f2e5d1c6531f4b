#include "gpu/regular_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

class RegularFileTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return testing::TempDir() + "/" + name; }
  static void ExpectRefused(const std::string& path, const std::string& why) {
    EXPECT_EQ(ReadRegularFile(path, 8).status(),
              absl::InvalidArgumentError(absl::StrCat(path, ": ", why)));
  }
};

TEST_F(RegularFileTest, AFileIsReadToItsEndAndThroughLinks) {
  const std::string content = std::string(40000, 'a') + std::string("\0\xff", 2);
  std::ofstream(Path("file")) << content;
  ASSERT_EQ(symlink("file", Path("link").c_str()), 0);
  EXPECT_EQ(ReadRegularFile(Path("file"), content.size()).value(), content);
  EXPECT_EQ(ReadRegularFile(Path("link"), content.size()).value(), content);
  EXPECT_FALSE(ReadRegularFile(Path("file"), content.size() - 1).ok());
}

TEST_F(RegularFileTest, AnEmptyFileIsEmpty) {
  std::ofstream(Path("empty")).flush();
  EXPECT_EQ(ReadRegularFile(Path("empty"), 0).value(), "");
}

TEST_F(RegularFileTest, WhatIsNoFileIsRefusedAtOnce) {
  ASSERT_EQ(mkdir(Path("folder").c_str(), 0700), 0);
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  ExpectRefused(Path("folder"), "is no regular file");
  ExpectRefused(Path("pipe"), "is no regular file");
  ExpectRefused("/dev/zero", "is no regular file");
}

TEST_F(RegularFileTest, WhatIsNotThereIsNotFound) {
  EXPECT_EQ(ReadRegularFile("/no/such/file", 8).status(),
            absl::NotFoundError("/no/such/file: No such file or directory"));
}

TEST_F(RegularFileTest, ALargerOneIsRefused) {
  std::ofstream(Path("large")) << "123456789";
  ExpectRefused(Path("large"), "9 bytes, must be at most 8");
}

}  // namespace
}  // namespace kvdepot
