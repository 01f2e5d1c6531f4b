// A gate holds the worker inside a piece, so that what waits behind it is known and nothing depends
// on timing.
#include "server/work_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/mutex.h"
#include "tests/server/fake_clock.h"
#include "tests/server/gate.h"

namespace kvdepot {
namespace {

// What happened, in order: one worker writes it, and the test reads it when that is idle.
class Journal {
 public:
  void Write(std::string line) {
    MutexLock lock(mu_);
    lines_.push_back(std::move(line));
  }
  std::vector<std::string> lines() {
    MutexLock lock(mu_);
    return lines_;
  }

 private:
  Mutex mu_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

class JournalWork : public Work {
 public:
  JournalWork(Journal* journal, std::string name, int pieces, Gate* gate = nullptr)
      : journal_(journal), name_(std::move(name)), pieces_(pieces), gate_(gate) {}

  // By its name, so that a test reads well.
  bool IsBrief() const override { return name_ == "brief"; }

  bool RunPiece() override {
    if (gate_ != nullptr) gate_->Pass();
    journal_->Write(absl::StrCat(name_, ++done_));
    return done_ < pieces_;
  }
  void Refuse(const absl::Status& status) override {
    journal_->Write(absl::StrCat(name_, " ", absl::StatusCodeToString(status.code())));
  }

 private:
  Journal* const journal_;
  const std::string name_;
  const int pieces_;
  Gate* const gate_;
  int done_ = 0;
};

class WorkQueueTest : public testing::Test {
 protected:
  absl::Status Push(const std::string& tenant, const std::string& name, int pieces,
                    Caller caller = {}, Gate* gate = nullptr) {
    caller.tenant = tenant;
    std::unique_ptr<Work> work = std::make_unique<JournalWork>(&journal_, name, pieces, gate);
    const absl::Status status = queue_->Push(caller, work);
    EXPECT_EQ(status.ok(), work == nullptr);
    return status;
  }
  // Occupies the worker until the gate opens.
  void Block() {
    ASSERT_TRUE(Push("gate", "gate", 1, {}, &gate_).ok());
    gate_.WaitUntilReached();
  }

  FakeClock clock_;
  Journal journal_;
  Gate gate_;
  std::unique_ptr<WorkQueue> queue_ = std::make_unique<WorkQueue>(3, &clock_);
};

using Lines = std::vector<std::string>;

TEST_F(WorkQueueTest, TenantsTakeTurnsPieceByPiece) {
  Block();
  ASSERT_TRUE(Push("a", "long", 3).ok());
  ASSERT_TRUE(Push("b", "b", 1).ok());
  ASSERT_TRUE(Push("a", "short", 1).ok());
  gate_.Open();
  ASSERT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_EQ(journal_.lines(), Lines({"gate1", "long1", "b1", "short1", "long2", "long3"}));
}

TEST_F(WorkQueueTest, AFullQueueRefusesThatTenantAlone) {
  Block();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Push("a", "a", 1).ok());
  EXPECT_EQ(Push("a", "a", 1), absl::ResourceExhaustedError(
                                   "queued_requests_per_tenant_max: 3 of 3 requests are waiting"));
  EXPECT_TRUE(Push("b", "b", 1).ok());
  gate_.Open();
  ASSERT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_TRUE(Push("a", "a", 1).ok());
}

TEST_F(WorkQueueTest, ACancelledRequestDoesNotBegin) {
  Block();
  Caller caller;
  caller.cancelled = [] { return true; };
  ASSERT_TRUE(Push("a", "a", 1, caller).ok());
  gate_.Open();
  ASSERT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_EQ(journal_.lines(), Lines({"gate1", "a CANCELLED"}));
}

TEST_F(WorkQueueTest, ARequestWhoseDeadlineHasPassedDoesNotBegin) {
  Block();
  Caller caller;
  caller.deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_TRUE(Push("a", "late", 1, caller).ok());
  caller.deadline = clock_.Now() + absl::Seconds(3);
  ASSERT_TRUE(Push("a", "early", 1, caller).ok());
  clock_.Advance(absl::Seconds(2));
  gate_.Open();
  ASSERT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_EQ(journal_.lines(), Lines({"gate1", "late DEADLINE_EXCEEDED", "early1"}));
}

TEST_F(WorkQueueTest, WaitingEndsAtItsDeadline) {
  Block();
  EXPECT_FALSE(queue_->WaitUntilIdle(absl::InfinitePast()));
  gate_.Open();
  EXPECT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
}

TEST_F(WorkQueueTest, ABriefRequestIsDoneAtOnceIfNothingElseWaits) {
  ASSERT_TRUE(Push("a", "brief", 1).ok());
  EXPECT_EQ(journal_.lines(), Lines({"brief1"}));
}

TEST_F(WorkQueueTest, ABriefRequestWaitsForItsTurnBehindOthers) {
  Block();
  ASSERT_TRUE(Push("a", "a", 1).ok());
  ASSERT_TRUE(Push("a", "brief", 1).ok());
  EXPECT_EQ(journal_.lines(), Lines());
  gate_.Open();
  ASSERT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_EQ(journal_.lines(), Lines({"gate1", "a1", "brief1"}));
}

TEST_F(WorkQueueTest, WhatComesDuringABriefRequestIsDoneAfterIt) {
  std::thread brief([this] { ASSERT_TRUE(Push("a", "brief", 1, {}, &gate_).ok()); });
  gate_.WaitUntilReached();
  ASSERT_TRUE(Push("b", "b", 1).ok());
  gate_.Open();
  brief.join();
  ASSERT_TRUE(queue_->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_EQ(journal_.lines(), Lines({"brief1", "b1"}));
}

TEST_F(WorkQueueTest, ItsEndGivesEveryRequestItsOutcome) {
  Block();
  ASSERT_TRUE(Push("a", "a", 2).ok());
  ASSERT_TRUE(Push("b", "b", 1).ok());
  gate_.Open();
  queue_.reset();
  // Whether they began before the end came is a matter of timing, that they are over is not.
  const Lines lines = journal_.lines();
  const auto count = [&lines](const std::string& line) {
    return std::count(lines.begin(), lines.end(), line);
  };
  EXPECT_EQ(count("a2") + count("a UNAVAILABLE"), 1);
  EXPECT_EQ(count("b1") + count("b UNAVAILABLE"), 1);
}

}  // namespace
}  // namespace kvdepot
