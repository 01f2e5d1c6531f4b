// Memory of a GPU that a client of a dead daemon still maps is not free: the next daemon starts
// with what is left, or waits for the client to let go, as it was told.
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/mapped_session.h"
#include "gtest/gtest.h"
#include "tests/integration/daemon_process.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

uint64_t BudgetOf(const Lease& lease, const DaemonProcess& daemon) {
  const auto client = Client::Connect(daemon.target(), {}, Soon());
  EXPECT_TRUE(client.ok()) << client.status();
  if (!client.ok()) return 0;
  EXPECT_EQ((*client)->server_info().epoch(), lease.epoch());
  return (*client)->server_info().budget_bytes();
}

TEST(PinnedMemory, ADaemonStartsWithWhatIsLeftOrWaits) {
  const char* const name = std::getenv("KVDEPOT_TEST_DEVICE");
  if (name == nullptr || std::string(name) == "cpu") GTEST_SKIP() << "no device";
  const std::string device = absl::StrCat("--device=", name);
  const auto budget = [](uint64_t bytes) { return absl::StrCat("--memory_budget=", bytes); };

  uint64_t free_bytes = 0;
  {
    const DaemonProcess daemon({device, "--memory_budget=100%"});
    const auto lease = daemon.OpenLease();
    ASSERT_NE(lease, nullptr);
    free_bytes = BudgetOf(*lease, daemon);
  }
  // A tenth of the device is one slab, and so what one short session pins.
  const uint64_t slab_bytes = free_bytes / 10 >> 21 << 21;
  const uint64_t wanted_bytes = free_bytes / 20 * 19;
  std::shared_ptr<Lease> lease;
  absl::StatusOr<std::unique_ptr<MappedSession>> session = absl::UnknownError("not opened");
  {
    const DaemonProcess dead(
        {device, budget(wanted_bytes), absl::StrCat("--slab_bytes=", slab_bytes)});
    lease = dead.OpenLease();
    ASSERT_NE(lease, nullptr);
    ASSERT_EQ(BudgetOf(*lease, dead), wanted_bytes);
    session =
        MappedSession::Open(lease, dead.CreateSession("chat"), {MapAccess::kWrite, 256}, Soon());
    ASSERT_TRUE(session.ok()) << session.status();
  }
  {
    const DaemonProcess smaller({device, budget(wanted_bytes)});
    const auto next = smaller.OpenLease();
    ASSERT_NE(next, nullptr);
    EXPECT_LT(BudgetOf(*next, smaller), wanted_bytes);
  }
  const DaemonProcess waiting({device, budget(wanted_bytes), "--memory_wait_timeout=1m"});
  // Long enough for it to have looked.
  EXPECT_FALSE(Client::Connect(waiting.target(), {}, absl::Now() + absl::Seconds(5)).ok());
  *session = nullptr;
  lease = nullptr;
  const auto next = waiting.OpenLease();
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(BudgetOf(*next, waiting), wanted_bytes);
}

}  // namespace
}  // namespace kvdepot
