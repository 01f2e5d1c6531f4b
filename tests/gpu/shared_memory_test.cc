#include "gpu/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "gpu/ipc_region.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

constexpr size_t kBytes = kSlabGranularityBytes;

std::unique_ptr<SlabMemory> Make(ExtentUse use) {
  absl::StatusOr<std::unique_ptr<SlabMemory>> memory = MakeSharedMemory(kBytes, use);
  EXPECT_TRUE(memory.ok()) << memory.status();
  return *std::move(memory);
}

TEST(SharedMemoryTest, AMappingShowsWhatItsOwnerWritesAndOutlivesIt) {
  auto memory = Make(ExtentUse::kSealed);
  EXPECT_EQ(memory->size_bytes(), kBytes);
  EXPECT_EQ(memory->data()[kBytes - 1], std::byte{0});
  absl::StatusOr<IpcRegion> region = memory->Export();
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(region->kind, RegionKind::kSharedMemory);
  EXPECT_EQ(region->device, "");
  auto mapped = MapSharedMemory(*region, RegionAccess::kRead);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  std::memset(memory->data(), 7, kBytes);
  memory = nullptr;
  EXPECT_EQ((*mapped)->data()[0], std::byte{7});
  EXPECT_EQ((*mapped)->data()[kBytes - 1], std::byte{7});
}

TEST(SharedMemoryTest, SealedExtentsCannotBeMappedForWriting) {
  const auto memory = Make(ExtentUse::kSealed);
  const absl::StatusOr<IpcRegion> region = memory->Export();
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(MapSharedMemory(*region, RegionAccess::kReadWrite).status().code(),
            absl::StatusCode::kPermissionDenied);
  // Nor by other means: a write, another descriptor of the same file, later access rights.
  EXPECT_EQ(pwrite(region->descriptor.get(), "x", 1, 0), -1);
  const std::string path = "/proc/self/fd/" + std::to_string(region->descriptor.get());
  const FileDescriptor again(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (again) {
    EXPECT_EQ(mmap(nullptr, kBytes, PROT_WRITE, MAP_SHARED, again.get(), 0), MAP_FAILED);
  }
  const auto mapped = MapSharedMemory(*region, RegionAccess::kRead);
  ASSERT_TRUE(mapped.ok());
  EXPECT_NE(mprotect((*mapped)->data(), kBytes, PROT_READ | PROT_WRITE), 0);
}

TEST(SharedMemoryTest, TailsAreSharedBothWays) {
  const auto memory = Make(ExtentUse::kTail);
  const absl::StatusOr<IpcRegion> region = memory->Export();
  ASSERT_TRUE(region.ok());
  const auto mapped = MapSharedMemory(*region, RegionAccess::kReadWrite);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  (*mapped)->data()[100] = std::byte{9};
  EXPECT_EQ(memory->data()[100], std::byte{9});
}

TEST(SharedMemoryTest, NobodyCanTakePagesAwayUnderAReader) {
  const auto memory = Make(ExtentUse::kTail);
  const absl::StatusOr<IpcRegion> region = memory->Export();
  ASSERT_TRUE(region.ok());
  EXPECT_NE(ftruncate(region->descriptor.get(), 0), 0);
  EXPECT_NE(ftruncate(region->descriptor.get(), 2 * kBytes), 0);
  EXPECT_NE(fcntl(region->descriptor.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

TEST(SharedMemoryTest, ADescriptorOfAnotherSizeOrThatCanShrinkIsRefused) {
  const auto memory = Make(ExtentUse::kTail);
  absl::StatusOr<IpcRegion> region = memory->Export();
  ASSERT_TRUE(region.ok());
  region->size_bytes = 2 * kBytes;
  EXPECT_EQ(MapSharedMemory(*region, RegionAccess::kRead).status().code(),
            absl::StatusCode::kFailedPrecondition);
  IpcRegion other;
  other.size_bytes = kBytes;
  other.descriptor = FileDescriptor(memfd_create("other", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(other.descriptor.get(), kBytes), 0);
  EXPECT_EQ(MapSharedMemory(other, RegionAccess::kRead).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace kvdepot
