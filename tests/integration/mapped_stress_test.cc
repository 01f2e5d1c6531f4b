// Readers that keep several directories of a session and look at every byte that these list, again
// and again, while its writer appends, truncates, seals and deletes it in little memory, so that
// what is free is used at once:
//   mapped_stress_test [SEED SECONDS]
// A segment's checksum must match whenever it is looked at, and tokens must be those that were
// there when the directory came.
#include <atomic>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/mapped_session.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/integration/raw_lease.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr int kReaders = 2;
constexpr size_t kDirectoriesKept = 5;

unsigned seed = 1;
int seconds = 8;

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

// Where the writer's session is, which it deletes now and then.
class CurrentSession {
 public:
  void Set(const v1::Session& session) {
    const std::lock_guard<std::mutex> lock(mutex_);
    id_ = session.id();
  }
  std::string id() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return id_;
  }

 private:
  mutable std::mutex mutex_;
  std::string id_;
};

class Reader {
 public:
  Reader(v1::KvDepotService::Stub* stub, unsigned own_seed) : lease_(stub), random_(own_seed) {
    lease_.Attach();
  }

  void Run(const CurrentSession& current, const std::atomic<bool>& stopped) {
    while (!stopped && !::testing::Test::HasFailure()) {
      if (id_ != current.id()) Forget(current.id());
      Take();
      for (const Kept& kept : kept_) Verify(kept);
      if (kept_.size() > kDirectoriesKept || random_() % 3 == 0) Retire();
    }
    Forget("");
  }

  uint64_t segments_verified() const { return segments_verified_; }
  uint64_t extents_verified() const { return extents_verified_; }

 private:
  struct Kept {
    v1::MappedDirectory directory;
    // Of each exact extent's tokens.
    std::vector<size_t> hashes;
  };

  // The newest directory. NOT_FOUND: the session was deleted.
  void Take() {
    v1::MapSessionResponse response;
    const grpc::Status status = lease_.Map(id_, v1::MAP_ACCESS_READ, &response);
    if (!status.ok()) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND) << status.error_message();
      return;
    }
    if (!kept_.empty() && kept_.back().directory.version() == response.directory().version())
      return;
    Kept kept;
    kept.directory = response.directory();
    kept.hashes = Hashes(kept.directory);
    kept_.push_back(std::move(kept));
  }

  void Verify(const Kept& kept) {
    EXPECT_EQ(Hashes(kept.directory), kept.hashes)
        << "tokens of directory " << kept.directory.version() << " have changed";
    for (const v1::MappedLayer& layer : kept.directory.layers()) {
      for (const v1::MappedExtent& extent : layer.extents()) {
        if (extent.form() == v1::MAPPED_FORM_EXACT) continue;
        const absl::Status valid =
            ValidateSegment(absl::MakeConstSpan(At(extent), extent.size_bytes()));
        EXPECT_TRUE(valid.ok()) << valid << " in directory " << kept.directory.version();
        ++segments_verified_;
      }
    }
  }

  void Retire() {
    // All but the newest ones, of a number that changes.
    for (size_t keep = 1 + random_() % 3; kept_.size() > keep;) kept_.pop_front();
    if (!kept_.empty()) lease_.Retire(id_, kept_.front().directory.version());
  }

  void Forget(const std::string& next) {
    for (const Kept& kept : kept_) Verify(kept);
    kept_.clear();
    const grpc::Status status = lease_.Unmap(id_);
    EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::NOT_FOUND ||
                status.error_code() == grpc::StatusCode::INVALID_ARGUMENT)
        << status.error_message();
    id_ = next;
  }

  const std::byte* At(const v1::MappedExtent& extent) {
    return lease_.Region(extent.slab())->data() + extent.offset();
  }

  std::vector<size_t> Hashes(const v1::MappedDirectory& directory) {
    std::vector<size_t> hashes;
    for (const v1::MappedLayer& layer : directory.layers()) {
      for (const v1::MappedExtent& extent : layer.extents()) {
        if (extent.form() != v1::MAPPED_FORM_EXACT) continue;
        const size_t row_bytes = kHeadDim * sizeof(float);
        std::string tokens;
        for (size_t tensor = 0; tensor < 2 * kKvHeads; ++tensor) {
          const size_t first = tensor * extent.capacity() + extent.first_token();
          tokens.append(reinterpret_cast<const char*>(At(extent)) + first * row_bytes,
                        extent.token_count() * row_bytes);
        }
        hashes.push_back(std::hash<std::string>()(tokens));
        ++extents_verified_;
      }
    }
    return hashes;
  }

  RawLease lease_;
  std::minstd_rand random_;
  std::string id_;
  std::list<Kept> kept_;
  uint64_t segments_verified_ = 0;
  uint64_t extents_verified_ = 0;
};

class Writer {
 public:
  explicit Writer(TestDaemon* daemon) : daemon_(daemon), random_(seed) {
    auto lease = Lease::Open(daemon->server().addresses()[0], {}, Soon());
    EXPECT_TRUE(lease.ok()) << lease.status();
    lease_ = *lease;
    Create();
  }

  void Run(const std::atomic<bool>& stopped) {
    while (!stopped && !::testing::Test::HasFailure()) {
      const unsigned what = random_() % 100;
      if (what < 70) {
        Append(1 + random_() % 200);
      } else if (what < 85) {
        const uint64_t count = session_->committed_token_count();
        Expect(session_->Truncate(count - random_() % (count + 1) / 2, Soon()));
      } else if (what < 97) {
        Seal();
      } else {
        Delete();
        Create();
      }
    }
  }

  const CurrentSession& current() const { return current_; }
  int sessions() const { return sessions_; }

 private:
  void Expect(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }

  void Create() {
    const v1::Codec host_codecs[] = {v1::CODEC_RAW, v1::CODEC_PLANES, v1::CODEC_PACKKV};
    const v1::Codec codec = lease_->device().empty()
                                ? host_codecs[random_() % 3]
                                : (random_() % 4 == 0 ? v1::CODEC_RAW : v1::CODEC_PLANES);
    info_ = daemon_->CreateSession(absl::StrCat("session ", ++sessions_), codec);
    auto session = MappedSession::Open(lease_, info_.id(), {MapAccess::kWrite, 300}, Soon());
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
    current_.Set(info_);
  }

  void Append(uint64_t count) {
    if (session_->token_count(0) > 3000) Expect(session_->Truncate(200, Soon()));
    for (size_t layer = 0; layer < kLayers; ++layer) {
      // Values that differ from what stood at the position before.
      const MappedTokens tokens(static_cast<int>(layer), static_cast<int>(random_() % 100000),
                                static_cast<int>(count));
      Expect(session_->Append(layer, tokens.tokens()));
    }
    Expect(session_->Commit(Soon()));
  }

  void Seal() {
    v1::SealSessionRequest request;
    request.set_session_id(info_.id());
    request.set_generation(session_->generation());
    request.set_lease_id(lease_->id());
    v1::SealSessionResponse response;
    Context context;
    const grpc::Status status = daemon_->stub().SealSession(context.get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    Expect(session_->Refresh(Soon()));
  }

  void Delete() {
    v1::DeleteSessionRequest request;
    request.set_session_id(info_.id());
    v1::DeleteSessionResponse response;
    Context context;
    EXPECT_TRUE(daemon_->stub().DeleteSession(context.get(), request, &response).ok());
    session_ = nullptr;
  }

  TestDaemon* const daemon_;
  std::minstd_rand random_;
  std::shared_ptr<Lease> lease_;
  v1::Session info_;
  std::unique_ptr<MappedSession> session_;
  CurrentSession current_;
  int sessions_ = 0;
};

TEST(MappedStressTest, NoReaderSeesBytesChange) {
  TestDaemon daemon([](Options& options, const std::string& folder) {
    InHostMemory(options, folder);
    options.engine.lease_timeout = absl::Hours(1);
    options.slab_bytes = kSlabGranularityBytes;
  });
  std::atomic<bool> stopped{false};
  Writer writer(&daemon);
  std::vector<std::unique_ptr<Reader>> readers;
  std::vector<std::thread> threads;
  for (int i = 0; i < kReaders; ++i) {
    readers.push_back(
        std::make_unique<Reader>(&daemon.stub(), seed + 1 + static_cast<unsigned>(i)));
    threads.emplace_back(
        [&, i] { readers[static_cast<size_t>(i)]->Run(writer.current(), stopped); });
  }
  threads.emplace_back([&] { writer.Run(stopped); });
  const absl::Time end = absl::Now() + absl::Seconds(seconds);
  while (absl::Now() < end && !::testing::Test::HasFailure()) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  stopped = true;
  for (std::thread& thread : threads) thread.join();
  uint64_t segments = 0;
  uint64_t extents = 0;
  for (const auto& reader : readers) {
    segments += reader->segments_verified();
    extents += reader->extents_verified();
  }
  std::cerr << "seed " << seed << ": " << writer.sessions() << " sessions, " << segments
            << " segments and " << extents << " exact extents verified\n";
  EXPECT_GT(writer.sessions(), 1);
  EXPECT_GT(segments, 1000u);
  EXPECT_GT(extents, 1000u);
}

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc == 3) {
    kvdepot::seed = static_cast<unsigned>(std::atoi(argv[1]));
    kvdepot::seconds = std::atoi(argv[2]);
  }
  return RUN_ALL_TESTS();
}
