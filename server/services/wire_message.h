// Messages as bytes, which calls parse and serialise themselves.
//
// gRPC's generated code answers bytes that do not parse with UNIMPLEMENTED and no message, and
// tells a stream's reactor the end of the stream and such bytes in the same way: a client's broken
// chunk would pass for the end of its Append.
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

  // Empties `bytes`: a large message is not held twice while its call waits.
  void Parse(grpc::ByteBuffer* bytes) {
    const size_t size = bytes->Length();
    const bool parsed = grpc::SerializationTraits<Message>::Deserialize(bytes, &message).ok();
    status = parsed ? absl::OkStatus()
                    : absl::InvalidArgumentError(absl::StrCat(
                          "message: ", size, " bytes, must be a ", message.GetTypeName()));
  }
};

// The request of a call, in gRPC's memory: const there, though the call alone reads it.
inline grpc::ByteBuffer* RequestBytes(const grpc::ByteBuffer* bytes) {
  return const_cast<grpc::ByteBuffer*>(bytes);
}

template <typename Message>
void SerializeMessage(const Message& message, grpc::ByteBuffer* bytes) {
  bytes->Clear();
  bool owns = false;
  // Fails only beyond 2 GiB, and what we send is bounded by Options::message_bytes_max.
  KVDEPOT_CHECK(grpc::SerializationTraits<Message>::Serialize(message, bytes, &owns).ok());
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_WIRE_MESSAGE_H_
