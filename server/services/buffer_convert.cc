#include "server/services/buffer_convert.h"

#include "absl/strings/str_cat.h"
#include "server/services/field_error.h"
#include "server/services/mapping_convert.h"

namespace kvdepot {
namespace {

// What vector loads and copies of every device need.
constexpr uint64_t kAlignment = 16;
constexpr size_t kIpcHandleBytes = 64;
// More than a processor has addresses for.
constexpr uint64_t kBufferBytesMax = uint64_t{1} << 47;

struct FoundRange {
  BufferRef buffer;
  std::byte* data = nullptr;
};

absl::StatusOr<FoundRange> Find(const v1::BufferRange& range, const BufferFinder& find) {
  absl::Status status = CheckLeaseId(range.lease_id());
  if (!status.ok()) return status;
  absl::StatusOr<BufferRef> buffer = find(range);
  if (!buffer.ok()) return buffer.status();
  const uint64_t buffer_bytes = (*buffer)->size_bytes();
  if (range.offset() % kAlignment != 0) {
    return FieldError("offset", range.offset(), absl::StrCat("a multiple of ", kAlignment));
  }
  if (range.offset() > buffer_bytes || range.size_bytes() > buffer_bytes - range.offset()) {
    return FieldError("size_bytes", absl::StrCat(range.size_bytes(), " from ", range.offset()),
                      absl::StrCat("within the buffer's ", buffer_bytes));
  }
  return FoundRange{*buffer, (*buffer)->data() + range.offset()};
}

std::string RangeField(absl::string_view field) { return absl::StrCat(field, "_range"); }

}  // namespace

absl::StatusOr<BufferRequest> ToBufferRequest(const v1::RegisterBufferRequest& request) {
  absl::Status status = CheckLeaseId(request.lease_id());
  if (!status.ok()) return status;
  BufferRequest buffer;
  buffer.lease_id = request.lease_id();
  buffer.buffer = request.buffer();
  if (request.size_bytes() < 1 || request.size_bytes() > kBufferBytesMax) {
    return FieldError("size_bytes", request.size_bytes(), absl::StrCat("1..", kBufferBytesMax));
  }
  if (request.offset() % kAlignment != 0 || request.offset() > kBufferBytesMax) {
    return FieldError("offset", request.offset(),
                      absl::StrCat("a multiple of ", kAlignment, " up to ", kBufferBytesMax));
  }
  buffer.offset = request.offset();
  buffer.region.size_bytes = request.offset() + request.size_bytes();
  const size_t handle_bytes = request.cuda_ipc_handle().size();
  switch (request.kind()) {
    case v1::BUFFER_KIND_SHARED_MEMORY:
      buffer.region.kind = RegionKind::kSharedMemory;
      return buffer;
    case v1::BUFFER_KIND_CUDA_IPC:
      if (handle_bytes != kIpcHandleBytes) {
        return FieldError("cuda_ipc_handle", absl::StrCat(handle_bytes, " bytes"), kIpcHandleBytes);
      }
      buffer.region.kind = RegionKind::kCudaIpc;
      buffer.region.handle = request.cuda_ipc_handle();
      return buffer;
    default:
      return FieldError("kind", static_cast<int>(request.kind()), "SHARED_MEMORY or CUDA_IPC");
  }
}

absl::StatusOr<CallInput> ToCallInput(absl::string_view field, const std::string& bytes,
                                      const v1::BufferRange* range, uint64_t bytes_max,
                                      const BufferFinder& find) {
  if (range == nullptr) return CallInput(bytes);
  if (!bytes.empty()) {
    return FieldError(RangeField(field), "set", absl::StrCat("set only without ", field));
  }
  if (range->size_bytes() > bytes_max) {
    return Inside(RangeField(field), FieldError("size_bytes", range->size_bytes(),
                                                absl::StrCat("at most ", bytes_max)));
  }
  absl::StatusOr<FoundRange> found = Find(*range, find);
  if (!found.ok()) return Inside(RangeField(field), found.status());
  CallInput input(absl::string_view(reinterpret_cast<const char*>(found->data),
                                    static_cast<size_t>(range->size_bytes())));
  input.buffer = found->buffer;
  return input;
}

absl::StatusOr<CallOutput> ToCallOutput(absl::string_view field, const v1::BufferRange* range,
                                        const BufferFinder& find) {
  if (range == nullptr) return CallOutput();
  absl::StatusOr<FoundRange> found = Find(*range, find);
  if (!found.ok()) return Inside(RangeField(field), found.status());
  return CallOutput{found->buffer, found->data, static_cast<size_t>(range->size_bytes())};
}

}  // namespace kvdepot
