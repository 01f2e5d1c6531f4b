// Memory that a call reads and writes: bytes of its messages, or ranges of buffers that its client
// has registered.
#ifndef KVDEPOT_SERVER_CALL_MEMORY_H_
#define KVDEPOT_SERVER_CALL_MEMORY_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "gpu/ipc_region.h"
#include "gpu/memory_space.h"

namespace kvdepot {

// A registered buffer, mapped for as long as somebody holds it.
using BufferRef = std::shared_ptr<const MappedRegion>;

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
