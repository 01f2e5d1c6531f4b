// When the daemon may reuse what a process was shown: once the process has said that it let go of
// it, or its pidfd is readable and its life socket at end of file. Neither alone will do.
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/integration/raw_lease.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

// Far longer than the daemon takes to notice anything: what has not been freed by then stays.
constexpr absl::Duration kLongEnough = absl::Milliseconds(500);

class LeaseLifeTest : public ::testing::Test {
 protected:
  LeaseLifeTest()
      : daemon_([](Options& options, const std::string& folder) {
          InHostMemory(options, folder);
          options.engine.lease_timeout = absl::Seconds(60);
        }) {
    session_ = daemon_.CreateSession("chat");
    EXPECT_TRUE(daemon_.AppendTokens(session_, 0, 100).ok());
  }

  uint64_t UsedBytes() {
    v1::GetServerInfoResponse info;
    Context context;
    EXPECT_TRUE(daemon_.stub().GetServerInfo(context.get(), {}, &info).ok());
    return info.used_bytes();
  }
  // From now on the session's memory is held for whoever maps it, and by nobody else.
  void Delete() {
    v1::DeleteSessionRequest request;
    request.set_session_id(session_.id());
    v1::DeleteSessionResponse response;
    Context context;
    EXPECT_TRUE(daemon_.stub().DeleteSession(context.get(), request, &response).ok());
  }
  void WaitUntilFree() {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (UsedBytes() > 0 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    EXPECT_EQ(UsedBytes(), 0u);
  }
  // Starts lease_holder and returns its pid and its child's.
  pid_t StartHolder(const char* option, pid_t* child) {
    std::string program = "tests/integration/lease_holder";
    std::string address = daemon_.server().addresses()[0];
    std::string id = session_.id();
    std::string last = option;
    char* const arguments[] = {&program[0], &address[0], &id[0], &last[0], nullptr};
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, program.c_str(), &actions, nullptr, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    FILE* const output = fdopen(ends[0], "r");
    int number = -1;
    EXPECT_EQ(std::fscanf(output, "%d", &number), 1);
    std::fclose(output);
    *child = number;
    return pid;
  }

  TestDaemon daemon_;
  v1::Session session_;
};

TEST_F(LeaseLifeTest, EndOfFileAloneFreesNothing) {
  RawLease lease(&daemon_.stub());
  lease.Attach();
  v1::MapSessionResponse response;
  ASSERT_TRUE(lease.Map(session_.id(), v1::MAP_ACCESS_READ, &response).ok());
  const v1::MappedExtent& extent = response.directory().layers(0).extents(1);
  const MappedRegion* const region = lease.Region(extent.slab());
  ASSERT_NE(region, nullptr);
  const std::string before(reinterpret_cast<const char*>(region->data()) + extent.offset(),
                           extent.size_bytes());
  Delete();
  const uint64_t held = UsedBytes();
  EXPECT_GT(held, 0u);
  lease.CancelStream();
  lease.CloseSocket();
  absl::SleepFor(kLongEnough);
  EXPECT_EQ(UsedBytes(), held);
  // Nor does whoever comes next get the bytes: this process still maps them.
  const v1::Session next = daemon_.CreateSession("next");
  ASSERT_TRUE(daemon_.AppendTokens(next, 0, 400).ok());
  EXPECT_EQ(before, std::string(reinterpret_cast<const char*>(region->data()) + extent.offset(),
                                extent.size_bytes()));
}

TEST_F(LeaseLifeTest, AProcessThatIsKilledFreesAll) {
  pid_t child = 0;
  const pid_t holder = StartHolder("alone", &child);
  Delete();
  absl::SleepFor(kLongEnough);
  EXPECT_GT(UsedBytes(), 0u);
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  WaitUntilFree();
}

// A zombie runs no more and maps nothing: its parent may take its time.
TEST_F(LeaseLifeTest, AProcessThatIsKilledAndNotWaitedForFreesAll) {
  pid_t child = 0;
  const pid_t holder = StartHolder("alone", &child);
  Delete();
  kill(holder, SIGKILL);
  WaitUntilFree();
  waitpid(holder, nullptr, 0);
}

TEST_F(LeaseLifeTest, APidfdAloneFreesNothing) {
  // The orphan becomes ours, so that it can be waited for.
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  pid_t child = 0;
  const pid_t holder = StartHolder("fork", &child);
  ASSERT_GT(child, 0);
  Delete();
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  absl::SleepFor(kLongEnough);
  EXPECT_GT(UsedBytes(), 0u);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  WaitUntilFree();
}

TEST_F(LeaseLifeTest, AStoppedProcessHoldsWhatItWasShown) {
  pid_t child = 0;
  const pid_t holder = StartHolder("alone", &child);
  kill(holder, SIGSTOP);
  Delete();
  absl::SleepFor(kLongEnough);
  EXPECT_GT(UsedBytes(), 0u);
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  WaitUntilFree();
}

}  // namespace
}  // namespace kvdepot
