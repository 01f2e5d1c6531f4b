// An engine with leases whose streams and life sockets record what they were told.
#ifndef KVDEPOT_TESTS_SERVER_ENGINE_MAPPED_FIXTURE_H_
#define KVDEPOT_TESTS_SERVER_ENGINE_MAPPED_FIXTURE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "server/lease_table.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {

inline constexpr LayerShape kShape = {1, 2, 64, 0, 0};
inline constexpr size_t kTokenBytes = 2 * 64 * sizeof(float);

class RecordingStream final : public LeaseStream {
 public:
  void OnAttached() override { attached = true; }
  void OnUnmapWanted(const std::vector<std::string>& session_ids) override {
    unmap_wanted = session_ids;
  }
  void OnEnded(const absl::Status& reason) override {
    ended = true;
    end_reason = reason;
  }

  bool attached = false;
  bool ended = false;
  absl::Status end_reason;
  std::vector<std::string> unmap_wanted;
};

// Takes every slab, or says what it is told to say.
class RecordingPeer final : public LeasePeer {
 public:
  absl::Status SendSlab(const SlabNotice& notice, const IpcRegion& region) override {
    if (!answer.ok()) return answer;
    EXPECT_EQ(notice.size_bytes, region.size_bytes);
    sent.push_back(notice);
    return absl::OkStatus();
  }
  absl::StatusOr<FileDescriptor> TakeDescriptor(uint64_t buffer) override {
    const auto found = shown.find(buffer);
    if (found == shown.end()) return absl::NotFoundError("buffer: nothing came");
    FileDescriptor descriptor = std::move(found->second);
    shown.erase(found);
    return descriptor;
  }

  absl::Status answer;
  std::vector<SlabNotice> sent;
  std::map<uint64_t, FileDescriptor> shown;
};

class EngineMappedTest : public ::testing::Test {
 protected:
  struct TestLease {
    std::string id;
    std::shared_ptr<RecordingStream> stream = std::make_shared<RecordingStream>();
    std::shared_ptr<RecordingPeer> peer = std::make_shared<RecordingPeer>();
  };

  explicit EngineMappedTest(const EngineOptions& options = {}) : engine_(options) {}
  explicit EngineMappedTest(std::unique_ptr<Backend> backend)
      : engine_(EngineOptions(), std::move(backend)) {}
  void TearDown() override { engine_->CheckInvariants(); }

  TestLease Open() {
    TestLease lease;
    const auto id = engine_->OpenLease(engine_.caller(), lease.stream);
    EXPECT_TRUE(id.ok()) << id.status();
    lease.id = *id;
    EXPECT_TRUE(engine_->AttachLease(lease.id, lease.peer).ok());
    EXPECT_TRUE(lease.stream->attached);
    return lease;
  }
  absl::StatusOr<MapReply> Map(const TestLease& lease, const std::string& session_id, bool write,
                               uint64_t have_version = 0, uint64_t room_tokens = 0) {
    Pending<MapReply> pending;
    engine_->MapSession(engine_.caller(), {lease.id, session_id, write, have_version, room_tokens},
                        pending.done());
    return pending.Wait();
  }
  absl::StatusOr<MapReply> Commit(const TestLease& lease, const std::string& session_id,
                                  uint64_t generation, uint64_t token_count) {
    Pending<MapReply> pending;
    engine_->Commit(engine_.caller(), {lease.id, session_id, generation, token_count, 0, 0},
                    pending.done());
    return pending.Wait();
  }
  // The answer of the second one, which finds sealed what the first has made due.
  absl::StatusOr<MapReply> CommitAndSeal(const TestLease& lease, const std::string& session_id,
                                         uint64_t generation, uint64_t token_count) {
    const absl::StatusOr<MapReply> committed = Commit(lease, session_id, generation, token_count);
    return committed.ok() ? Commit(lease, session_id, generation, token_count) : committed;
  }
  SessionInfo Create(const std::string& name, Codec codec = Codec::kRaw) {
    return *engine_.Create(Spec(name, codec, kShape));
  }
  // The daemon's ticks go on until the session's new generation is there.
  void TickUntilGeneration(const std::string& session_id, uint64_t generation) {
    while (engine_.Get(session_id).generation < generation) engine_->ExpireLeases();
  }

  TestEngine engine_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_ENGINE_MAPPED_FIXTURE_H_
