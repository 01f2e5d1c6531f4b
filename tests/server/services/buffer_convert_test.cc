#include "server/services/buffer_convert.h"

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/server/services/one_buffer.h"

namespace kvdepot {
namespace {

using absl::InvalidArgumentError;

v1::RegisterBufferRequest ValidRequest() {
  v1::RegisterBufferRequest request;
  request.set_lease_id("lease");
  request.set_buffer(3);
  request.set_size_bytes(100);
  request.set_kind(v1::BUFFER_KIND_CUDA_IPC);
  request.set_cuda_ipc_handle(std::string(64, 'h'));
  return request;
}

TEST(ToBufferRequest, TakesBothKinds) {
  v1::RegisterBufferRequest request = ValidRequest();
  absl::StatusOr<BufferRequest> buffer = ToBufferRequest(request);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(buffer->lease_id, "lease");
  EXPECT_EQ(buffer->buffer, 3u);
  EXPECT_EQ(buffer->region.size_bytes, 100u);
  EXPECT_EQ(buffer->region.kind, RegionKind::kCudaIpc);
  EXPECT_EQ(buffer->region.handle, std::string(64, 'h'));
  request.set_kind(v1::BUFFER_KIND_SHARED_MEMORY);
  buffer = ToBufferRequest(request);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(buffer->region.kind, RegionKind::kSharedMemory);
}

TEST(ToBufferRequest, ChecksEveryField) {
  v1::RegisterBufferRequest request = ValidRequest();
  request.clear_lease_id();
  EXPECT_EQ(ToBufferRequest(request).status().code(), absl::StatusCode::kInvalidArgument);
  request = ValidRequest();
  request.set_size_bytes(0);
  EXPECT_EQ(ToBufferRequest(request).status(),
            InvalidArgumentError("size_bytes: 0, must be 1..140737488355328"));
  request = ValidRequest();
  request.set_size_bytes(UINT64_MAX);
  EXPECT_EQ(ToBufferRequest(request).status().code(), absl::StatusCode::kInvalidArgument);
  request = ValidRequest();
  request.set_offset(8);
  EXPECT_EQ(ToBufferRequest(request).status(),
            InvalidArgumentError("offset: 8, must be a multiple of 16 up to 140737488355328"));
  request.set_offset(UINT64_MAX - 15);
  EXPECT_EQ(ToBufferRequest(request).status().code(), absl::StatusCode::kInvalidArgument);
  request = ValidRequest();
  request.clear_kind();
  EXPECT_EQ(ToBufferRequest(request).status(),
            InvalidArgumentError("kind: 0, must be SHARED_MEMORY or CUDA_IPC"));
  request = ValidRequest();
  request.set_cuda_ipc_handle("short");
  EXPECT_EQ(ToBufferRequest(request).status(),
            InvalidArgumentError("cuda_ipc_handle: 5 bytes, must be 64"));
}

TEST(ToCallInput, IsTheMessagesBytesOrTheRange) {
  const auto buffer = OneBuffer::Make();
  const BufferFinder find = OneBuffer::Finder(buffer);
  const std::string bytes = "bytes";
  absl::StatusOr<CallInput> input = ToCallInput("q", bytes, nullptr, 100, find);
  ASSERT_TRUE(input.ok());
  EXPECT_EQ(input->bytes.data(), bytes.data());
  EXPECT_EQ(input->space(), MemorySpace::kHost);

  const v1::BufferRange range = RangeOf(32, 100);
  input = ToCallInput("q", "", &range, 100, find);
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->data(), buffer->data() + 32);
  EXPECT_EQ(input->bytes.size(), 100u);
  EXPECT_EQ(input->buffer, buffer);
  EXPECT_EQ(input->space(), MemorySpace::kDevice);
  EXPECT_EQ(ToCallInput("q", bytes, &range, 100, find).status(),
            InvalidArgumentError("q_range: set, must be set only without q"));
  EXPECT_EQ(ToCallInput("q", "", &range, 99, find).status(),
            InvalidArgumentError("q_range.size_bytes: 100, must be at most 99"));
}

TEST(ToCallOutput, IsTheReplyOrTheRange) {
  const auto buffer = OneBuffer::Make();
  absl::StatusOr<CallOutput> output = ToCallOutput("k", nullptr, OneBuffer::Finder(buffer));
  ASSERT_TRUE(output.ok());
  EXPECT_TRUE(output->is_in_reply());
  const v1::BufferRange range = RangeOf(4096 - 48, 48);
  output = ToCallOutput("k", &range, OneBuffer::Finder(buffer));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_FALSE(output->is_in_reply());
  EXPECT_EQ(output->data, buffer->data() + 4096 - 48);
  EXPECT_EQ(output->size_bytes, 48u);
}

TEST(ToCallOutput, RefusesWhatIsNotInTheBuffer) {
  const auto error = [](const v1::BufferRange& range) {
    return ToCallOutput("k", &range, OneBuffer::Finder()).status();
  };
  EXPECT_EQ(
      error(RangeOf(0, 4097)),
      InvalidArgumentError("k_range.size_bytes: 4097 from 0, must be within the buffer's 4096"));
  EXPECT_EQ(
      error(RangeOf(4096, 1)),
      InvalidArgumentError("k_range.size_bytes: 1 from 4096, must be within the buffer's 4096"));
  EXPECT_EQ(error(RangeOf(UINT64_MAX - 15, 32)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error(RangeOf(16, UINT64_MAX)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error(RangeOf(8, 16)),
            InvalidArgumentError("k_range.offset: 8, must be a multiple of 16"));
  v1::BufferRange other = RangeOf(0, 16);
  other.set_buffer(8);
  EXPECT_EQ(error(other), absl::NotFoundError("k_range.buffer: is not registered"));
  other = RangeOf(0, 16);
  other.clear_lease_id();
  EXPECT_EQ(error(other).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvdepot
