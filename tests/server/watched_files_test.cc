#include "server/watched_files.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"
#include "tests/server/token_file.h"

namespace kvdepot {
namespace {

class WatchedFilesTest : public testing::Test {
 protected:
  WatchedFilesTest() {
    ReplaceFile(a_, "a");
    ReplaceFile(b_, "b");
    EXPECT_TRUE(files_.Load().ok());
  }
  const std::string a_ = testing::TempDir() + "/a";
  const std::string b_ = testing::TempDir() + "/b";
  int loads_ = 0;
  absl::Status outcome_;
  WatchedFiles files_{{a_, b_}, [this] {
                        ++loads_;
                        return outcome_;
                      }};
};

TEST_F(WatchedFilesTest, AreLoadedOnceForEachChange) {
  EXPECT_EQ(files_.LoadIfNeeded(), std::nullopt);
  EXPECT_EQ(loads_, 1);
  ReplaceFile(b_, "c");
  EXPECT_EQ(files_.LoadIfNeeded(), absl::OkStatus());
  EXPECT_EQ(files_.LoadIfNeeded(), std::nullopt);
  EXPECT_EQ(loads_, 2);
}

TEST_F(WatchedFilesTest, ALoadThatIsAskedForNeedsNoChange) {
  ReplaceFile(a_, "c");
  EXPECT_TRUE(files_.Load().ok());
  EXPECT_TRUE(files_.Load().ok());
  EXPECT_EQ(files_.LoadIfNeeded(), std::nullopt);
  EXPECT_EQ(loads_, 3);
}

TEST_F(WatchedFilesTest, WhatFailedIsTriedAgainUntilItSucceeds) {
  outcome_ = absl::InvalidArgumentError("Too many open files");
  ReplaceFile(a_, "c");
  EXPECT_EQ(files_.LoadIfNeeded(), outcome_);
  EXPECT_EQ(files_.LoadIfNeeded(), std::nullopt) << "said already";
  EXPECT_EQ(loads_, 3) << "tried again";
  outcome_ = absl::InvalidArgumentError("Input/output error");
  EXPECT_EQ(files_.LoadIfNeeded(), outcome_) << "another reason";
  ReplaceFile(a_, "d");
  EXPECT_EQ(files_.LoadIfNeeded(), outcome_) << "the same of another file";
  outcome_ = absl::OkStatus();
  EXPECT_EQ(files_.LoadIfNeeded(), absl::OkStatus());
  EXPECT_EQ(files_.LoadIfNeeded(), std::nullopt);
  EXPECT_EQ(loads_, 6);
}

TEST_F(WatchedFilesTest, WhatFailedWhenAskedForIsTriedAgainToo) {
  outcome_ = absl::InvalidArgumentError("Too many open files");
  EXPECT_EQ(files_.Load(), outcome_);
  outcome_ = absl::OkStatus();
  EXPECT_EQ(files_.LoadIfNeeded(), absl::OkStatus());
}

}  // namespace
}  // namespace kvdepot
