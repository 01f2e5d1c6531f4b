#include "gpu/descriptor_packet.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

absl::Status SendError() {
  const std::string message = absl::StrCat("life_socket: sendmsg: ", std::strerror(errno));
  // EAGAIN: its queue is full. ETOOMANYREFS: too many descriptors wait in it.
  if (errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS || errno == EMFILE) {
    return absl::ResourceExhaustedError(message);
  }
  return absl::UnavailableError(message);
}

}  // namespace

absl::Status SendPacket(int socket, absl::string_view bytes, int descriptor) {
  iovec part = {const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof(descriptor));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? SendError() : absl::OkStatus();
}

absl::StatusOr<DescriptorPacket> ReceivePacket(int socket) {
  DescriptorPacket packet;
  packet.bytes.resize(kPacketBytesMax);
  iovec part = {&packet.bytes[0], packet.bytes.size()};
  // Room for a second descriptor, so that the kernel does not drop it silently.
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t received = 0;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0) {
    return absl::UnavailableError(absl::StrCat("life_socket: recvmsg: ", std::strerror(errno)));
  }
  packet.bytes.resize(static_cast<size_t>(received));

  int descriptors = 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof(descriptor));
      // Closing it must not wait, as that of a socket may for data that nobody reads.
      const linger off = {};
      (void)setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
      packet.descriptor = FileDescriptor(descriptor);
      ++descriptors;
    }
  }
  // Without a descriptor although one was sent: this process has no number left for it.
  const bool is_cut = (message.msg_flags & MSG_TRUNC) != 0 ||
                      ((message.msg_flags & MSG_CTRUNC) != 0 && descriptors > 0);
  if (descriptors > 1 || is_cut) {
    return absl::InvalidArgumentError(absl::StrCat("life_socket: a packet with ", descriptors,
                                                   " descriptors or above ", kPacketBytesMax,
                                                   " bytes"));
  }
  return packet;
}

}  // namespace kvdepot
