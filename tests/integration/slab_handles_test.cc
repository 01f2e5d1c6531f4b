// Slabs of a GPU as a process other than the daemon maps them, by either kind of handle: what it
// writes and attends is what the tokens say, whatever the daemon seals.
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/mapped_session.h"
#include "gtest/gtest.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/mapped_arm.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

class SlabHandlesTest : public ::testing::TestWithParam<std::string> {};

TEST_P(SlabHandlesTest, AnotherProcessMapsAndWritesThem) {
  const char* const device = std::getenv("KVDEPOT_TEST_DEVICE");
  if (device == nullptr || std::string(device) == "cpu") GTEST_SKIP() << "no device";
  const DaemonProcess daemon(
      {absl::StrCat("--device=", device), absl::StrCat("--slab_handles=", GetParam())});
  const std::shared_ptr<Lease> lease = daemon.OpenLease();
  ASSERT_NE(lease, nullptr);
  auto session =
      MappedSession::Open(lease, daemon.CreateSession("chat"), {MapAccess::kWrite, 256}, Soon());
  ASSERT_TRUE(session.ok()) << session.status();
  const std::unique_ptr<MappedArm> arm = MappedArm::For(*lease);
  for (int position = 0; position < 700; ++position) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const MappedTokens token(layer, position, 1);
      MappedQuery query(position);
      ASSERT_TRUE(arm->Append(session->get(), layer, token, &query).ok());
      ASSERT_LT(query.ErrorOver(layer, position + 1), 2e-3) << position;
    }
    if (position % 100 == 99) {
      ASSERT_TRUE(arm->Commit(session->get(), Soon()).ok());
    }
  }
  arm->Forget(session->get());
}

INSTANTIATE_TEST_SUITE_P(Kinds, SlabHandlesTest, ::testing::Values("descriptor", "cuda_ipc"));

}  // namespace
}  // namespace kvdepot
