// Packets of a Unix socket with a file descriptor beside their bytes: how slabs and pidfds travel.
#ifndef KVDEPOT_GPU_DESCRIPTOR_PACKET_H_
#define KVDEPOT_GPU_DESCRIPTOR_PACKET_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {

// A longer packet is an error of its sender.
inline constexpr size_t kPacketBytesMax = 4096;

struct DescriptorPacket {
  // Empty: end of file.
  std::string bytes;
  // None if the packet had none, or this process has no room for one (EMFILE).
  FileDescriptor descriptor;
};

// Sends one packet over a SOCK_SEQPACKET, without waiting; `descriptor` -1: none. UNAVAILABLE: the
// other end is closed. RESOURCE_EXHAUSTED: it does not take what was sent before.
absl::Status SendPacket(int socket, absl::string_view bytes, int descriptor);

// Receives one, waiting if the socket waits. UNAVAILABLE: nothing is there, or the connection
// broke. INVALID_ARGUMENT: more than kPacketBytesMax, or more than one descriptor.
absl::StatusOr<DescriptorPacket> ReceivePacket(int socket);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DESCRIPTOR_PACKET_H_
