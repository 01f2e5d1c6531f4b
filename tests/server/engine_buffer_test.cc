// Which buffers a lease has, and for how long. What calls do with them is
// tests/integration/registered_buffer_test.cc's matter.
#include "server/engine_buffer.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/backend.h"
#include "gpu/shared_memory.h"
#include "gtest/gtest.h"
#include "tests/gpu/forwarding_backend.h"
#include "tests/server/engine_mapped_fixture.h"
#include "tests/server/gate.h"
#include "tests/server/late_backend.h"

namespace kvdepot {
namespace {

constexpr size_t kBytes = 8192;

EngineOptions TwoBuffers() {
  EngineOptions options;
  options.buffers_per_lease_max = 2;
  options.buffer_bytes_per_tenant_max = 3 * kBytes;
  return options;
}

class EngineBufferTest : public EngineMappedTest {
 protected:
  EngineBufferTest() : EngineMappedTest(TwoBuffers()) {}

  // Sends memory of the test's for buffer number `buffer`; it says that it has `size_bytes`.
  absl::Status Register(const TestLease& lease, uint64_t buffer, size_t size_bytes = kBytes) {
    memory_ = *MakeSharedMemory(kBytes, ExtentUse::kTail);
    lease.peer->shown[buffer] = std::move(memory_->Export()->descriptor);
    return RegisterShown(lease, buffer, size_bytes);
  }
  absl::Status RegisterShown(const TestLease& lease, uint64_t buffer, size_t size_bytes,
                             RegionKind kind = RegionKind::kSharedMemory) {
    BufferRequest request;
    request.lease_id = lease.id;
    request.buffer = buffer;
    request.region.kind = kind;
    request.region.size_bytes = size_bytes;
    return engine_->RegisterBuffer(engine_.caller(), std::move(request));
  }
  // What it has answered; none yet: UNKNOWN.
  const absl::Status& Unregister(const Caller& caller, const TestLease& lease, uint64_t buffer) {
    unregistered_ = absl::UnknownError("not answered");
    engine_->UnregisterBuffer(caller, lease.id, buffer,
                              [this](const absl::Status& status) { unregistered_ = status; });
    return unregistered_;
  }
  absl::StatusOr<BufferRef> Find(const TestLease& lease, uint64_t buffer) {
    return engine_->FindBuffer(engine_.caller(), lease.id, buffer);
  }

  std::unique_ptr<SlabMemory> memory_;
  absl::Status unregistered_;
};

TEST_F(EngineBufferTest, ABufferIsTheMemoryThatWasShown) {
  const TestLease lease = Open();
  ASSERT_TRUE(Register(lease, 5).ok());
  const absl::StatusOr<BufferRef> buffer = Find(lease, 5);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ((*buffer)->size_bytes(), kBytes);
  memory_->data()[100] = std::byte{42};
  EXPECT_EQ((*buffer)->data()[100], std::byte{42});
  (*buffer)->data()[200] = std::byte{43};
  EXPECT_EQ(memory_->data()[200], std::byte{43});
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, kBytes);
}

TEST_F(EngineBufferTest, UnregisteringIsAnsweredOnceWhoHasFoundItIsThrough) {
  const TestLease lease = Open();
  ASSERT_TRUE(Register(lease, 5).ok());
  BufferRef found = *Find(lease, 5);
  EXPECT_TRUE(absl::IsUnknown(Unregister(engine_.caller(), lease, 5)));
  EXPECT_EQ(Find(lease, 5).status(), absl::NotFoundError("buffer: 5, is not registered"));
  memory_->data()[100] = std::byte{42};
  EXPECT_EQ(found->data()[100], std::byte{42});
  // Its answer may be lost: the next attempt waits as well, and the number and bytes are in use.
  EXPECT_TRUE(absl::IsUnknown(Unregister(engine_.caller(), lease, 5)));
  EXPECT_TRUE(absl::IsAlreadyExists(Register(lease, 5)));
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, kBytes);
  found = nullptr;
  EXPECT_TRUE(unregistered_.ok()) << unregistered_;
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, 0u);
  EXPECT_EQ(Unregister(engine_.caller(), lease, 5),
            absl::NotFoundError("buffer: 5, is not registered"));
  EXPECT_TRUE(Register(lease, 5).ok());
  EXPECT_TRUE(Unregister(engine_.caller(), lease, 5).ok());
}

TEST_F(EngineBufferTest, AnEndedLeasesBuffersAreFoundNoMoreButCanBeUnregistered) {
  const TestLease lease = Open();
  ASSERT_TRUE(Register(lease, 5).ok());
  engine_->EndLease(lease.id, absl::CancelledError("test"));
  EXPECT_TRUE(absl::IsFailedPrecondition(Find(lease, 5).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Register(lease, 6)));
  EXPECT_TRUE(Unregister(engine_.caller(), lease, 5).ok());
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, 0u);
}

TEST_F(EngineBufferTest, TheEndOfTheProcessEndsItsBuffers) {
  const TestLease lease = Open();
  ASSERT_TRUE(Register(lease, 5).ok());
  engine_->ReleaseLease(lease.id);
  EXPECT_TRUE(absl::IsNotFound(Find(lease, 5).status()));
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, 0u);
}

TEST_F(EngineBufferTest, AnotherLeaseOrTenantHasNotIt) {
  const TestLease lease = Open();
  ASSERT_TRUE(Register(lease, 5).ok());
  EXPECT_TRUE(absl::IsNotFound(Find(Open(), 5).status()));
  Caller other = engine_.caller();
  other.tenant = "other";
  EXPECT_TRUE(absl::IsNotFound(engine_->FindBuffer(other, lease.id, 5).status()));
  EXPECT_TRUE(absl::IsNotFound(Unregister(other, lease, 5)));
}

TEST_F(EngineBufferTest, NumbersAndCountAreChecked) {
  const TestLease lease = Open();
  ASSERT_TRUE(Register(lease, 0).ok());
  EXPECT_EQ(Register(lease, 0), absl::AlreadyExistsError("buffer: 0, is registered"));
  ASSERT_TRUE(Register(lease, UINT64_MAX).ok());
  EXPECT_EQ(Register(lease, 7),
            absl::ResourceExhaustedError("buffers_per_lease_max: 2 of 2 buffers are registered"));
}

TEST_F(EngineBufferTest, BytesOfAllLeasesOfATenantAreBounded) {
  const TestLease lease = Open();
  const TestLease other = Open();
  ASSERT_TRUE(Register(lease, 1).ok());
  ASSERT_TRUE(Register(lease, 2).ok());
  ASSERT_TRUE(Register(other, 1).ok());
  EXPECT_EQ(Register(other, 2),
            absl::ResourceExhaustedError("buffer_bytes_per_tenant_max: 24576 of 24576 bytes are "
                                         "mapped, 8192 more are too many"));
  EXPECT_TRUE(Unregister(engine_.caller(), lease, 1).ok());
  EXPECT_TRUE(Register(other, 2).ok());
}

TEST_F(EngineBufferTest, ABufferBeginsWhereItSays) {
  const TestLease lease = Open();
  memory_ = *MakeSharedMemory(kBytes, ExtentUse::kTail);
  lease.peer->shown[1] = std::move(memory_->Export()->descriptor);
  BufferRequest request;
  request.lease_id = lease.id;
  request.buffer = 1;
  request.region.size_bytes = kBytes;
  request.offset = 4096;
  ASSERT_TRUE(engine_->RegisterBuffer(engine_.caller(), std::move(request)).ok());
  memory_->data()[4096] = std::byte{42};
  EXPECT_EQ((*Find(lease, 1))->data()[0], std::byte{42});
  EXPECT_EQ((*Find(lease, 1))->size_bytes(), kBytes - 4096);
  // What comes before it is mapped as well.
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, kBytes);
}

TEST_F(EngineBufferTest, WhatIsShownMustBeMemoryOfItsSizeThatCannotShrink) {
  const TestLease lease = Open();
  EXPECT_TRUE(absl::IsNotFound(RegisterShown(lease, 1, kBytes)));
  EXPECT_TRUE(absl::IsFailedPrecondition(Register(lease, 1, kBytes + 1)));
  EXPECT_TRUE(absl::IsFailedPrecondition(Register(lease, 1, kBytes - 1)));
  lease.peer->shown[1] = FileDescriptor(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(absl::IsFailedPrecondition(RegisterShown(lease, 1, kBytes)));
  const FileDescriptor shrinks(open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_EQ(ftruncate(shrinks.get(), kBytes), 0);
  lease.peer->shown[1] = FileDescriptor(fcntl(shrinks.get(), F_DUPFD_CLOEXEC, 0));
  EXPECT_TRUE(absl::IsFailedPrecondition(RegisterShown(lease, 1, kBytes)));
  // For reading only, by the file and by how it was opened.
  memory_ = *MakeSharedMemory(kBytes, ExtentUse::kTail);
  const FileDescriptor writable = std::move(memory_->Export()->descriptor);
  lease.peer->shown[1] = FileDescriptor(
      open(absl::StrCat("/proc/self/fd/", writable.get()).c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(absl::IsPermissionDenied(RegisterShown(lease, 1, kBytes)));
  memory_ = *MakeSharedMemory(kBytes, ExtentUse::kSealed);
  lease.peer->shown[1] = std::move(memory_->Export()->descriptor);
  EXPECT_TRUE(absl::IsPermissionDenied(RegisterShown(lease, 1, kBytes)));
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterShown(lease, 1, kBytes, RegionKind::kCudaIpc)));
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, 0u);
}

class LateBufferTest : public EngineMappedTest {
 protected:
  LateBufferTest() : EngineMappedTest(std::make_unique<LateBackend>(&copies_)) {}

  std::atomic<int> copies_{0};
};

TEST_F(LateBufferTest, AnAppendIsAnsweredOnceItsBufferIsRead) {
  const TestLease lease = Open();
  const auto memory = *MakeSharedMemory(kBytes, ExtentUse::kTail);
  lease.peer->shown[1] = std::move(memory->Export()->descriptor);
  BufferRequest request;
  request.lease_id = lease.id;
  request.buffer = 1;
  request.region.size_bytes = kBytes;
  ASSERT_TRUE(engine_->RegisterBuffer(engine_.caller(), std::move(request)).ok());
  const SessionInfo session = Create("chat");
  const size_t bytes = 2 * kShape.row_values() * sizeof(float);
  TokenChunk chunk;
  chunk.token_count = 2;
  chunk.k.buffer = chunk.v.buffer = *engine_->FindBuffer(engine_.caller(), lease.id, 1);
  chunk.k.bytes = chunk.v.bytes =
      absl::string_view(reinterpret_cast<const char*>(chunk.k.buffer->data()), bytes);
  const auto addition = engine_->BeginAppend(engine_.caller(), session.id, session.generation);
  ASSERT_TRUE(addition.ok());
  Pending<LayerState> appended;
  int under_way = -1;
  (*addition)->Append(chunk, [&, done = appended.done()](const absl::StatusOr<LayerState>& state) {
    under_way = copies_;
    done(state);
  });
  ASSERT_TRUE(appended.Wait().ok());
  EXPECT_EQ(under_way, 0);
}

// Maps what is shown only while a gate is open.
class GatedMaps final : public ForwardingBackend {
 public:
  explicit GatedMaps(Gate* gate) : ForwardingBackend(MakeCpuBackend(1)), gate_(gate) {}

  absl::StatusOr<std::unique_ptr<MappedRegion>> MapBuffer(IpcRegion region) override {
    gate_->Pass();
    return ForwardingBackend::MapBuffer(std::move(region));
  }

 private:
  Gate* const gate_;
};

class GatedBufferTest : public EngineMappedTest {
 protected:
  GatedBufferTest() : EngineMappedTest(std::make_unique<GatedMaps>(&gate_)) {}

  // Buffer 1 of `lease_`, up to where it is mapped; `then` is what happens meanwhile.
  absl::Status RegisterAnd(const std::function<void()>& then) {
    const auto memory = *MakeSharedMemory(kBytes, ExtentUse::kTail);
    lease_.peer->shown[1] = std::move(memory->Export()->descriptor);
    absl::Status registered;
    std::thread registration([&] {
      BufferRequest request;
      request.lease_id = lease_.id;
      request.buffer = 1;
      request.region.size_bytes = kBytes;
      registered = engine_->RegisterBuffer(engine_.caller(), std::move(request));
    });
    gate_.WaitUntilReached();
    then();
    gate_.Open();
    registration.join();
    return registered;
  }
  absl::Status Unregister() {
    absl::Status answer = absl::UnknownError("not answered");
    engine_->UnregisterBuffer(engine_.caller(), lease_.id, 1,
                              [&](const absl::Status& status) { answer = status; });
    return answer;
  }

  Gate gate_;
  const TestLease lease_ = Open();
};

TEST_F(GatedBufferTest, WhatIsBeingRegisteredIsUnregisteredLater) {
  const absl::Status registered = RegisterAnd([&] {
    EXPECT_TRUE(absl::IsUnavailable(Unregister()));
    EXPECT_TRUE(absl::IsNotFound(engine_->FindBuffer(engine_.caller(), lease_.id, 1).status()));
  });
  EXPECT_TRUE(registered.ok()) << registered;
  EXPECT_TRUE(Unregister().ok());
}

// Whose process has gone in between.
TEST_F(GatedBufferTest, NothingIsLeftOfARegistrationWhoseLeaseIsOver) {
  const absl::Status registered = RegisterAnd([&] { engine_->ReleaseLease(lease_.id); });
  EXPECT_TRUE(absl::IsNotFound(registered)) << registered;
  EXPECT_EQ(engine_->mapping_usage().buffer_bytes, 0u);
}

}  // namespace
}  // namespace kvdepot
