// What doctor says in containers that see less of the machine than the daemon does.
#include "client/cli/process_checks.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"

namespace kvdepot::cli {
namespace {

// A client beside its daemon: same user, same namespace, both GPUs.
class ProcessChecksTest : public testing::Test {
 protected:
  ProcessChecksTest() {
    facts_.user = 1000;
    facts_.pid = 7;
    facts_.pid_namespace = 4026531836;
    facts_.socket.path = "/run/kvdepot/kvdepotd.sock";
    facts_.socket.owner = 1000;
    facts_.socket.mode = 0600;
    facts_.devices = {{"GPU-aaaa", 0, false}, {"GPU-bbbb", 1, false}};
    facts_.nodes = {0, 1};
    info_.set_backend("cuda");
    info_.set_device("GPU-bbbb");
    info_.mutable_process()->set_pid(3);
    info_.mutable_process()->set_pid_namespace(facts_.pid_namespace);
  }

  // What a check that must fail says.
  static std::string Failure(const absl::StatusOr<std::string>& finding) {
    EXPECT_TRUE(absl::IsFailedPrecondition(finding.status())) << finding.status();
    return std::string(finding.status().message());
  }
  static void ExpectSays(const std::string& text, const std::string& part) {
    EXPECT_TRUE(absl::StrContains(text, part)) << text;
  }

  ProcessFacts facts_;
  v1::GetServerInfoResponse info_;
};

TEST_F(ProcessChecksTest, BesideTheDaemonAllIsWell) {
  EXPECT_EQ(*CheckSocket(facts_), "/run/kvdepot/kvdepotd.sock of user 1000");
  EXPECT_EQ(*CheckProcess(facts_, info_), "process 7, in the daemon's PID namespace");
  EXPECT_EQ(*CheckDevice(facts_, info_), "GPU-bbbb");
}

TEST_F(ProcessChecksTest, ADaemonByTcpHasNoSocketHere) {
  facts_.socket = {};
  EXPECT_TRUE(CheckSocket(facts_).ok());
}

TEST_F(ProcessChecksTest, AnotherUsersSocket) {
  facts_.user = 1001;
  facts_.socket.connect_error = EACCES;
  facts_.socket.group = 50;
  EXPECT_EQ(Failure(CheckSocket(facts_)),
            "/run/kvdepot/kvdepotd.sock is user 1000's and group 50's, mode 0600, and this process "
            "is user 1001");
  ExpectSays(CureOf(CheckSocket(facts_).status()), "run it as user 1000 (runAsUser)");
  facts_.socket.mode = 0660;
  EXPECT_EQ(CureOf(CheckSocket(facts_).status()),
            "put user 1001 into group 50 (supplementalGroups)");
}

TEST_F(ProcessChecksTest, ASocketThatIsNotThereOrThatNobodyServes) {
  facts_.socket.connect_error = ECONNREFUSED;
  ExpectSays(Failure(CheckSocket(facts_)), "nobody listens");
  facts_.socket.is_socket = false;
  ExpectSays(Failure(CheckSocket(facts_)), "is no socket");
  facts_.socket.stat_error = EACCES;
  ExpectSays(CureOf(CheckSocket(facts_).status()), "let user 1000 search the folders");
  facts_.socket.stat_error = ENOENT;
  ExpectSays(CureOf(CheckSocket(facts_).status()), "share the folder of its socket");
}

TEST_F(ProcessChecksTest, EqualNumbersInTwoNamespaces) {
  facts_.pid_namespace = 4026532000;
  ExpectSays(*CheckProcess(facts_, info_), "in another PID namespace than the daemon");
  EXPECT_FALSE(absl::StrContains(*CheckProcess(facts_, info_), "legacy IPC"));
  info_.mutable_process()->set_pid(7);
  ExpectSays(*CheckProcess(facts_, info_), "refuses legacy IPC handles");
  // A daemon of an older release says nothing of itself.
  info_.clear_process();
  EXPECT_EQ(*CheckProcess(facts_, info_), "process 7");
}

TEST_F(ProcessChecksTest, RefusedSystemCalls) {
  facts_.pidfd_error = EPERM;
  ExpectSays(Failure(CheckProcess(facts_, info_)), "must allow pidfd_open");
  facts_.pidfd_error = ENOSYS;
  ExpectSays(Failure(CheckProcess(facts_, info_)), "kernel of 5.3 or newer");
  facts_.pidfd_error = 0;
  facts_.shared_memory_error = EPERM;
  ExpectSays(Failure(CheckProcess(facts_, info_)), "must allow memfd_create");
}

TEST_F(ProcessChecksTest, OnTheCpuNoDeviceIsNeeded) {
  info_.set_backend("cpu");
  facts_.devices.clear();
  facts_.nodes.clear();
  EXPECT_TRUE(CheckDevice(facts_, info_).ok());
}

TEST_F(ProcessChecksTest, ADaemonOnTheCpuBesideAGpu) {
  info_.set_backend("cpu");
  const absl::Status status = CheckDevice(facts_, info_).status();
  EXPECT_TRUE(IsDoubtful(status));
  EXPECT_EQ(status.message(), "the daemon computes on the CPU, and /dev/nvidia0 is here");
  ExpectSays(CureOf(status), "--device=cuda:0");
}

TEST_F(ProcessChecksTest, AContainerWithoutTheDaemonsDevice) {
  facts_.devices = {{"GPU-aaaa", 0, false}};
  facts_.nvidia_visible_devices = "GPU-aaaa";
  EXPECT_EQ(Failure(CheckDevice(facts_, info_)),
            "GPU-bbbb, the daemon's, is hidden from this process, which sees GPU-aaaa; "
            "NVIDIA_VISIBLE_DEVICES=GPU-aaaa, which must name it");
  facts_.devices.clear();
  facts_.nodes.clear();
  facts_.nvidia_visible_devices.reset();
  ExpectSays(Failure(CheckDevice(facts_, info_)),
             "no GPU in this container, NVIDIA_VISIBLE_DEVICES is not set");
}

TEST_F(ProcessChecksTest, ANodeThatCannotBeOpened) {
  facts_.nodes = {0};
  ExpectSays(Failure(CheckDevice(facts_, info_)), "/dev/nvidia1 of GPU-bbbb cannot be opened");
}

TEST_F(ProcessChecksTest, VisibleDevicesByUuid) {
  for (const char* visible : {"GPU-bbbb", "GPU-bb", "GPU-aaaa,GPU-bbbb"}) {
    facts_.cuda_visible_devices = visible;
    EXPECT_EQ(*CheckDevice(facts_, info_), "GPU-bbbb") << visible;
  }
  for (const char* visible : {"", "GPU-aaaa", "NoDevFiles", "-1", "-1,GPU-bbbb", "9,GPU-bbbb"}) {
    facts_.cuda_visible_devices = visible;
    ExpectSays(Failure(CheckDevice(facts_, info_)), "hides the daemon's device: add GPU-bbbb");
  }
}

TEST_F(ProcessChecksTest, VisibleDevicesByNumber) {
  facts_.cuda_visible_devices = "1";
  ExpectSays(*CheckDevice(facts_, info_), "cannot be told from numbers");
  facts_.cuda_device_order = "PCI_BUS_ID";
  EXPECT_EQ(*CheckDevice(facts_, info_), "GPU-bbbb");
  facts_.cuda_visible_devices = "0";
  ExpectSays(Failure(CheckDevice(facts_, info_)), "CUDA_VISIBLE_DEVICES=0 hides");
  facts_.cuda_device_order.reset();
  facts_.devices = {{"GPU-bbbb", 1, false}};
  EXPECT_EQ(*CheckDevice(facts_, info_), "GPU-bbbb");
}

TEST_F(ProcessChecksTest, TheDriversFilesAreHiddenButNotTheNodes) {
  facts_.devices.clear();
  EXPECT_EQ(*CheckDevice(facts_, info_), "GPU-bbbb");
  facts_.cuda_visible_devices = "0";
  ExpectSays(*CheckDevice(facts_, info_), "cannot be told from numbers");
  facts_.cuda_visible_devices = "GPU-aaaa";
  ExpectSays(Failure(CheckDevice(facts_, info_)), "hides the daemon's device");
}

TEST_F(ProcessChecksTest, MigInstances) {
  facts_.devices[1].mig = true;
  ExpectSays(Failure(CheckDevice(facts_, info_)), "is cut into MIG instances");
  facts_.cuda_visible_devices = "MIG-1";
  EXPECT_EQ(*CheckDevice(facts_, info_), "the MIG instance MIG-1");
  info_.set_device("MIG-1");
  EXPECT_EQ(*CheckDevice(facts_, info_), "the MIG instance MIG-1");
  info_.set_device("MIG-2");
  EXPECT_EQ(Failure(CheckDevice(facts_, info_)),
            "the daemon has the MIG instance MIG-2, this process MIG-1: memory is not shared "
            "between instances, give both the same one");
}

// Of the machine that runs this test only what every machine has.
TEST(ProcessFactsTest, AreThoseOfThisProcess) {
  const ProcessFacts facts = GatherProcessFacts("unix:///nonexistent/socket");
  EXPECT_EQ(facts.socket.path, "/nonexistent/socket");
  EXPECT_EQ(facts.socket.stat_error, ENOENT);
  EXPECT_NE(facts.pid_namespace, 0u);
  EXPECT_EQ(facts.pidfd_error, 0);
  EXPECT_EQ(facts.shared_memory_error, 0);
  EXPECT_EQ(GatherProcessFacts("127.0.0.1:1").socket.path, "");
}

}  // namespace
}  // namespace kvdepot::cli
