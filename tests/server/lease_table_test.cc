// The books of leases: whose right has run out, what they hold, and who is asked to unmap.
#include "server/lease_table.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

class SilentStream final : public LeaseStream {
 public:
  void OnAttached() override {}
  void OnUnmapWanted(const std::vector<std::string>&) override {}
  void OnEnded(const absl::Status&) override {}
};

absl::Time At(int seconds) { return absl::FromUnixSeconds(seconds); }

class LeaseTableTest : public ::testing::Test {
 protected:
  LeaseRecord* Add(const std::string& id, const std::string& tenant, int deadline) {
    auto lease = std::make_unique<LeaseRecord>();
    lease->id = id;
    lease->tenant = tenant;
    lease->stream = std::make_shared<SilentStream>();
    lease->deadline = At(deadline);
    LeaseRecord* const record = lease.get();
    table_.Insert(std::move(lease));
    return record;
  }

  LeaseTable table_;
};

TEST_F(LeaseTableTest, ALeaseIsItsTenants) {
  LeaseRecord* const lease = Add("a", "alice", 10);
  EXPECT_EQ(table_.Find("alice", "a"), lease);
  EXPECT_EQ(table_.Find("bob", "a"), nullptr);
  EXPECT_EQ(table_.Find("alice", "b"), nullptr);
  EXPECT_EQ(table_.Find("a"), lease);
}

TEST_F(LeaseTableTest, AnEndedLeaseIsNeitherOpenNorOverdue) {
  Add("a", "alice", 10);
  LeaseRecord* const ended = Add("b", "alice", 10);
  Add("c", "bob", 11);
  EXPECT_EQ(table_.OpenCountOf("alice"), 2u);
  ended->stream = nullptr;
  EXPECT_EQ(table_.OpenCountOf("alice"), 1u);
  EXPECT_TRUE(table_.Overdue(At(9)).empty());
  EXPECT_EQ(table_.Overdue(At(10)), std::vector<std::string>{"a"});
  EXPECT_EQ(table_.Overdue(At(11)), (std::vector<std::string>{"a", "c"}));
  EXPECT_EQ(table_.usage().leases, 2u);
}

TEST_F(LeaseTableTest, CountsWhatIsHeldAndLetsGoOfIt) {
  LeaseRecord* const lease = Add("a", "alice", 10);
  const auto directory = std::make_shared<const Directory>();
  LeaseRecord::Shown& shown = lease->shown["s"];
  shown.versions = {{1, directory}, {2, directory}, {5, directory}};
  shown.newest_version = 5;
  lease->slabs[7].size_bytes = 100;
  lease->slabs[8].size_bytes = 20;
  const MappingUsage usage = table_.usage();
  EXPECT_EQ(usage.versions_held_back, 2u);
  EXPECT_EQ(usage.mapped_bytes, 120u);
  LetGo let_go;
  table_.Erase("a", &let_go);
  EXPECT_EQ(let_go.directories.size(), 3u);
  EXPECT_EQ(let_go.slabs.size(), 2u);
  EXPECT_EQ(table_.Find("a"), nullptr);
}

TEST_F(LeaseTableTest, AsksATenantsLeasesOnceForAllThatTheyMap) {
  LeaseRecord* const lease = Add("a", "alice", 10);
  lease->shown["s"];
  lease->shown["t"];
  Add("idle", "alice", 10);
  Add("other", "bob", 10)->shown["u"];
  LeaseRecord* const ended = Add("ended", "alice", 10);
  ended->shown["v"];
  ended->stream = nullptr;
  const UnmapRequests requests = table_.WantUnmapped("alice", At(3));
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0].first, lease->stream);
  EXPECT_EQ(requests[0].second, (std::vector<std::string>{"s", "t"}));
  EXPECT_EQ(lease->unmap_deadline, At(3));
  EXPECT_TRUE(table_.WantUnmapped("alice", At(4)).empty());
  EXPECT_EQ(lease->unmap_deadline, At(3));
  lease->unmap_asked.clear();
  EXPECT_EQ(table_.WantUnmapped("alice", At(5)).size(), 1u);
}

}  // namespace
}  // namespace kvdepot
