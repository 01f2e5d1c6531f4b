// Messages of a stream as bytes.
//
// gRPC tells a reactor the end of a stream and a message that does not parse in the same way: a
// client's broken chunk would pass for the end of its Append. So streams receive bytes and parse
// themselves.
#ifndef KVDEPOT_SERVER_SERVICES_WIRE_MESSAGE_H_
#define KVDEPOT_SERVER_SERVICES_WIRE_MESSAGE_H_

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot {

// A received message, with INVALID_ARGUMENT if its bytes are none.
template <typename Message>
struct WireMessage {
  Message message;
  absl::Status status;

  // Empties `bytes`.
  void Parse(grpc::ByteBuffer* bytes) {
    const size_t size = bytes->Length();
    const bool parsed = grpc::SerializationTraits<Message>::Deserialize(bytes, &message).ok();
    status = parsed ? absl::OkStatus()
                    : absl::InvalidArgumentError(absl::StrCat(
                          "message: ", size, " bytes, must be a ", message.GetTypeName()));
  }
};

template <typename Message>
void SerializeMessage(const Message& message, grpc::ByteBuffer* bytes) {
  bytes->Clear();
  bool owns = false;
  // Fails only beyond 2 GiB, and what we send is bounded by Options::message_bytes_max.
  KVDEPOT_CHECK(grpc::SerializationTraits<Message>::Serialize(message, bytes, &owns).ok());
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_WIRE_MESSAGE_H_
