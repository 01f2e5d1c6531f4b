#include "server/services/trace_context.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

// The specification's own example.
const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
const std::string kParent = "00f067aa0ba902b7";
const std::string kHeader = absl::StrCat("00-", kTrace, "-", kParent, "-01");

TEST(TraceContext, HasTheIdsOfTheHeader) {
  const TraceContext trace = ParseTraceparent(kHeader);
  EXPECT_EQ(trace.trace_id, kTrace);
  EXPECT_EQ(trace.parent_id, kParent);
}

TEST(TraceContext, LaterVersionsMayHaveMoreBehind) {
  const std::string later = absl::StrCat("cc", kHeader.substr(2));
  EXPECT_EQ(ParseTraceparent(later).trace_id, kTrace);
  EXPECT_EQ(ParseTraceparent(later + "-what-the-future-will-be").trace_id, kTrace);
  EXPECT_EQ(ParseTraceparent(later + ".01").trace_id, "");
  EXPECT_EQ(ParseTraceparent(kHeader + "-01").trace_id, "") << "version 00 has four parts";
}

TEST(TraceContext, WhatIsMalformedIsNoTrace) {
  const std::string zeros(32, '0');
  for (const std::string& header :
       {std::string(), std::string("00"), kHeader.substr(0, 54),
        absl::StrCat("ff", kHeader.substr(2)), absl::StrCat("00-", zeros, "-", kParent, "-01"),
        absl::StrCat("00-", kTrace, "-", zeros.substr(16), "-01"),
        absl::StrCat("00-", kTrace.substr(1), "G-", kParent, "-01"),
        absl::StrCat("00-", "4BF92F3577B34DA6A3CE929D0E0E4736", "-", kParent, "-01"),
        absl::StrCat("0g-", kTrace, "-", kParent, "-01"),
        absl::StrCat("00-", kTrace, "-", kParent, "-0\n"),
        absl::StrCat("00_", kTrace, "-", kParent, "-01"),
        absl::StrCat("00-", kTrace, "_", kParent, "-01"),
        absl::StrCat("00-", kTrace, "-", kParent, "_01")}) {
    EXPECT_EQ(ParseTraceparent(header).trace_id, "") << header;
    EXPECT_EQ(ParseTraceparent(header).parent_id, "") << header;
  }
}

}  // namespace
}  // namespace kvdepot
