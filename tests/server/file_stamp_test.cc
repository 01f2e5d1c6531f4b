#include "server/file_stamp.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/server/token_file.h"

namespace kvdepot {
namespace {

class FileStampTest : public testing::Test {
 protected:
  FileStampTest() : folder_(testing::TempDir() + "/") { ReplaceFile(folder_ + "a", "same"); }
  bool IsAs(const FileStamp& before, const std::string& name) const {
    return FileStamp(folder_ + name) == before;
  }
  const std::string folder_;
};

// Times of files are those of the kernel's tick, before Linux 6.13.
void AwaitNextFileTime() {
  timespec first = {};
  timespec now = {};
  clock_gettime(CLOCK_REALTIME_COARSE, &first);
  do {
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
  } while (now.tv_sec == first.tv_sec && now.tv_nsec == first.tv_nsec);
}

TEST_F(FileStampTest, AFileThatNobodyTouchesKeepsItsStamp) {
  EXPECT_TRUE(IsAs(FileStamp(folder_ + "a"), "a"));
}

TEST_F(FileStampTest, AFileThatIsWrittenOrReplacedHasAnother) {
  FileStamp before(folder_ + "a");
  std::ofstream(folder_ + "a", std::ios::app) << "more";
  EXPECT_FALSE(IsAs(before, "a"));
  before = FileStamp(folder_ + "a");
  ReplaceFile(folder_ + "a", "samemore");
  EXPECT_FALSE(IsAs(before, "a")) << "of the same length";
}

TEST_F(FileStampTest, ATimeThatIsSetBackHidesNothing) {
  struct stat facts = {};
  ASSERT_EQ(stat((folder_ + "a").c_str(), &facts), 0);
  const FileStamp before(folder_ + "a");
  AwaitNextFileTime();
  std::fstream(folder_ + "a", std::ios::in | std::ios::out) << "emas";
  const timespec times[] = {facts.st_atim, facts.st_mtim};
  ASSERT_EQ(utimensat(AT_FDCWD, (folder_ + "a").c_str(), times, 0), 0);
  EXPECT_FALSE(IsAs(before, "a"));
}

TEST_F(FileStampTest, ALinkHasTheStampOfWhatItLeadsTo) {
  ReplaceFile(folder_ + "b", "same");
  ASSERT_EQ(symlink("a", (folder_ + "link").c_str()), 0);
  const FileStamp before(folder_ + "link");
  ASSERT_EQ(symlink("b", (folder_ + "next").c_str()), 0);
  ASSERT_EQ(std::rename((folder_ + "next").c_str(), (folder_ + "link").c_str()), 0);
  EXPECT_FALSE(IsAs(before, "link"));
  EXPECT_TRUE(IsAs(FileStamp(folder_ + "b"), "link"));
  EXPECT_EQ(unlink((folder_ + "link").c_str()), 0);
}

TEST_F(FileStampTest, WhatIsNotThereHasOneStamp) {
  EXPECT_TRUE(IsAs(FileStamp(), "none"));
  EXPECT_FALSE(IsAs(FileStamp(), "a"));
}

}  // namespace
}  // namespace kvdepot
