// Raw segments that the GPU writes are valid and hold the blocks as they came; values that are not
// finite are found where they are.
#include "gpu/raw/segment_cuda.h"

#include <cstring>
#include <random>
#include <vector>

#include "gpu/backend.h"
#include "gpu/checksum_cuda.h"
#include "gpu/finite_cpu.h"
#include "gpu/raw/finite_cuda.h"
#include "gpu/raw/tokens_cpu.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"

namespace kvdepot::raw {
namespace {

std::vector<std::byte> RandomBytes(size_t count, std::mt19937& random) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

TEST(RawSegmentCudaTest, WritesTheBytesOfTheCpu) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  std::mt19937 random(1);
  for (const int head_dim : {64, 128, 256}) {
    for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
      for (const int block_count : {1, 3, 16}) {
        const int kv_heads = block_count == 3 ? 40 : 2;  // a header of 256 bytes, too
        const LayerShape shape{kv_heads, kv_heads, head_dim, 0, 0};
        const size_t block_bytes = ExactExtentBytes(shape, dtype, kBlockTokens);
        const std::vector<std::byte> tokens =
            RandomBytes(block_bytes * static_cast<size_t>(block_count), random);
        const size_t size =
            SegmentBytes(shape, dtype, Codec::kRaw, nullptr, block_count * kBlockTokens);

        std::vector<std::byte> expected(size);
        std::vector<const std::byte*> host_blocks, device_blocks;
        const DeviceArray<std::byte> extents(tokens);
        for (size_t b = 0; b < static_cast<size_t>(block_count); ++b) {
          host_blocks.push_back(tokens.data() + b * block_bytes);
          device_blocks.push_back(extents.data() + b * block_bytes);
        }
        WriteSegmentHeader(shape, dtype, Codec::kRaw, nullptr, block_count * kBlockTokens, size,
                           expected.data());
        EncodeSegment({shape, dtype, host_blocks}, expected.data() + SegmentHeaderBytes(kv_heads));
        const uint64_t checksum = SegmentChecksum(expected);
        memcpy(expected.data() + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));

        const DeviceArray<const std::byte*> blocks(device_blocks);
        const DeviceArray<std::byte> segment(size);
        SegmentJob job{};
        job.blocks = blocks.data();
        job.segment = segment.data();
        job.size_bytes = size;
        job.block_count = static_cast<uint32_t>(block_count);
        const DeviceArray<SegmentJob> jobs(std::vector<SegmentJob>{job});
        const SegmentBatch batch{kv_heads, head_dim, dtype, jobs.data(), 1, 16, size};
        const DeviceArray<std::byte> workspace(ChecksumWorkspaceBytes(1, size));
        ASSERT_EQ(EncodeSegments(batch, workspace.data(), nullptr), cudaSuccess);
        EXPECT_TRUE(segment.Get() == expected)
            << head_dim << " channels, dtype " << static_cast<int>(dtype) << ", " << block_count
            << " blocks";
      }
    }
  }
}

TEST(FiniteCudaTest, FindsTheFirst) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  std::mt19937 random(1);
  const DeviceArray<uint64_t> first(1);
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const size_t count : {0u, 1u, 7u, 8u, 4097u, 1000003u}) {
      const size_t value_bytes = DTypeBytes(dtype);
      std::vector<std::byte> values = RandomBytes(count * value_bytes, random);
      // Bit 6 of the top byte is part of every type's exponent.
      for (size_t i = value_bytes - 1; i < values.size(); i += value_bytes)
        values[i] &= std::byte{0xBF};
      for (int round = 0; round < 4; ++round) {
        const DeviceArray<std::byte> device(values);
        ASSERT_EQ(FindNonFinite(device.data(), dtype, count, first.data(), nullptr), cudaSuccess);
        EXPECT_EQ(first.Get()[0], FirstNonFinite(values.data(), dtype, count));
        if (count == 0) break;
        const uint32_t bits = dtype == DType::kFp32   ? (round == 0 ? 0x7F800000u : 0xFFC00001u)
                              : dtype == DType::kBf16 ? (round == 0 ? 0x7F80u : 0xFF81u)
                                                      : (round == 0 ? 0x7C00u : 0xFC01u);
        memcpy(values.data() + random() % count * value_bytes, &bits, value_bytes);
      }
    }
  }
}

}  // namespace
}  // namespace kvdepot::raw
