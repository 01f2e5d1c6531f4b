// A client that stops in the middle of an Append: appending_peer ADDRESS SESSION_ID GENERATION. It
// sends tokens 0..199 of layer 0 in two chunks, leaves the stream open and waits for its end.
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/server/services/test_daemon.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto stub = kvdepot::v1::KvDepotService::NewStub(
      grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  kvdepot::v1::Session session;
  session.set_id(argv[2]);
  session.set_generation(std::strtoull(argv[3], nullptr, 10));
  kvdepot::v1::AppendResponse response;
  kvdepot::Context context;
  const auto writer = stub->Append(context.get(), &response);
  kvdepot::v1::AppendRequest second;
  *second.mutable_chunk() = kvdepot::Chunk(0, 100, 100);
  if (!writer->Write(kvdepot::AppendOf(session, kvdepot::Chunk(0, 0, 100)))) return 1;
  if (!writer->Write(second)) return 1;
  while (true) pause();
}
