// Checksums by the GPU equal the CPU's, which come from the xxHash library, for every length of a
// last piece and for lists of hashes on both sides of XXH3's changes of method.
#include "gpu/checksum_cuda.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"

namespace kvdepot {
namespace {

TEST(ChecksumCudaTest, EqualsTheCpuForAllSizes) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  std::vector<size_t> sizes;
  for (size_t size = 256; size <= 3 * kChecksumPieceBytes; size += 128) sizes.push_back(size);
  for (size_t pieces = 4; pieces <= 200; ++pieces) {
    sizes.push_back(pieces * kChecksumPieceBytes - 128 * (pieces % 32));
  }
  sizes.push_back(1500 * kChecksumPieceBytes + 384);
  const size_t total = std::accumulate(sizes.begin(), sizes.end(), size_t{0});

  std::vector<std::byte> bytes(total);
  std::mt19937 random(1);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random()); });
  DeviceArray<std::byte> device(bytes);
  std::vector<SegmentJob> jobs;
  size_t offset = 0;
  for (const size_t size : sizes) {
    SegmentJob job{};
    job.segment = device.data() + offset;
    job.size_bytes = size;
    jobs.push_back(job);
    offset += size;
  }
  const DeviceArray<SegmentJob> device_jobs(jobs);
  const size_t size_max = *std::max_element(sizes.begin(), sizes.end());
  const int count = static_cast<int>(jobs.size());
  const DeviceArray<std::byte> workspace(ChecksumWorkspaceBytes(count, size_max));
  const DeviceArray<uint64_t> checksums(jobs.size());
  ASSERT_EQ(ComputeChecksums(device_jobs.data(), count, size_max, checksums.data(),
                             workspace.data(), nullptr),
            cudaSuccess);
  const std::vector<uint64_t> computed = checksums.Get();
  ASSERT_EQ(WriteChecksums(device_jobs.data(), count, size_max, workspace.data(), nullptr),
            cudaSuccess);
  const std::vector<std::byte> written = device.Get();

  offset = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const uint64_t expected = SegmentChecksum({bytes.data() + offset, sizes[i]});
    EXPECT_EQ(computed[i], expected) << sizes[i] << " bytes";
    memcpy(bytes.data() + offset + offsetof(SegmentHeader, checksum), &expected, sizeof(expected));
    offset += sizes[i];
  }
  EXPECT_TRUE(written == bytes) << "something else than the checksums changed";
}

}  // namespace
}  // namespace kvdepot
