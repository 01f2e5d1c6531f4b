// Memory that a call reads and writes: bytes of its messages, or ranges of buffers that its client
// has registered.
#ifndef KVDEPOT_SERVER_CALL_MEMORY_H_
#define KVDEPOT_SERVER_CALL_MEMORY_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "gpu/ipc_region.h"
#include "gpu/memory_space.h"
#include "server/mutex.h"

namespace kvdepot {

// A client's buffer: a part of what it has shown, mapped for as long as somebody holds it.
class RegisteredMemory {
 public:
  // The buffer is the region from byte `offset` on, to its end.
  RegisteredMemory(std::unique_ptr<MappedRegion> region, size_t offset)
      : region_(std::move(region)), offset_(offset) {}
  ~RegisteredMemory() {
    region_ = nullptr;
    for (const std::function<void()>& call : on_unmapped_) call();
  }
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  std::byte* data() const { return region_->data() + offset_; }
  size_t size_bytes() const { return region_->size_bytes() - offset_; }

  // `call` comes, from any thread, once nobody holds this and it is unmapped. Thread-safe.
  void CallWhenUnmapped(std::function<void()> call) {
    MutexLock lock(mutex_);
    on_unmapped_.push_back(std::move(call));
  }

 private:
  std::unique_ptr<MappedRegion> region_;
  const size_t offset_;
  Mutex mutex_;
  // Guarded by mutex_ while somebody holds this.
  std::vector<std::function<void()>> on_unmapped_;
};
using BufferRef = std::shared_ptr<const RegisteredMemory>;

struct CallInput {
  CallInput() = default;
  // Of a message. Both convert implicitly: most inputs are.
  CallInput(absl::string_view message_bytes) : bytes(message_bytes) {}   // NOLINT
  CallInput(const std::string& message_bytes) : bytes(message_bytes) {}  // NOLINT

  const std::byte* data() const { return reinterpret_cast<const std::byte*>(bytes.data()); }
  MemorySpace space() const {
    return buffer == nullptr ? MemorySpace::kHost : MemorySpace::kDevice;
  }

  absl::string_view bytes;
  // Whose memory they are; null: a message's.
  BufferRef buffer;
};

struct CallOutput {
  bool is_in_reply() const { return buffer == nullptr; }

  // Null: the reply has the bytes, and what follows means nothing.
  BufferRef buffer;
  std::byte* data = nullptr;
  size_t size_bytes = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CALL_MEMORY_H_
