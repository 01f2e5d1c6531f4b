// The C++ client of a KV Depot daemon.
//
//   auto client = kvdepot::Client::Connect("unix:/run/kvdepot/kvdepotd.sock", {}, absl::Now() +
//   absl::Seconds(5)); if (!client.ok()) return client.status(); kvdepot::v1::CreateSessionRequest
//   request = ...;   // name, layers, dtype auto created = (*client)->CreateSession(request,
//   absl::Now() + absl::Seconds(5));
//
//   // A prompt: all layers in one call, so that each is sealed as one addition.
//   std::vector<kvdepot::LayerTokens> prompt = {{/*layer=*/0, /*position=*/0, token_count, k, v},
//   ...}; auto appended = (*client)->Append(kvdepot::SessionVersion::Of(created->session()),
//   prompt, deadline);
//
//   // Decoding: one message a layer and token, append and attention in one round trip.
//   auto stream = (*client)->OpenDecode(absl::Now() + absl::Minutes(10));
//   auto output = stream->Step(message);
//
// Deadlines. Every method takes one and returns by then, with DEADLINE_EXCEEDED; retries happen
// within it. It is a point in time, not a duration, so that one deadline covers a sequence of
// calls.
//
// Retries. Calls that have the same effect when they arrive twice are sent again on UNAVAILABLE
// (client/retry.h): all reads, CreateSession, DeleteSession, SealSession, TouchSession,
// PutCalibration and Append (idempotent by generation, layer and position). TruncateSession is not:
// it bumps the generation, so the second of two would be ABORTED. Neither is a DecodeStream: see
// client/decode_stream.h.
//
// Errors are those that proto/kvdepot/v1/kv_depot_service.proto lists, one meaning per code, with
// the daemon's details as payloads (client/grpc_status.h).
//
// Thread safety: a Client is thread-safe and meant to be shared; its calls run on one connection.
// Messages of one connection share a flow-control window, so threads that move many bytes do better
// with a Client each.
#ifndef KVDEPOT_CLIENT_CLIENT_H_
#define KVDEPOT_CLIENT_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/decode_stream.h"
#include "client/layer_tokens.h"
#include "kvdepot/v1/kv_depot_service.pb.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace kvdepot {

class Connection;

// Which state of a session a change is meant for: a truncation in between makes it ABORTED.
struct SessionVersion {
  std::string session_id;
  uint64_t generation = 0;

  static SessionVersion Of(const v1::Session& session) {
    return {session.id(), session.generation()};
  }
};

class Client {
 public:
  struct Options {
    // Names the tenant. Empty: none is sent, which a daemon without a token file accepts.
    std::string token;
    // Null: plain, for Unix sockets and networks that are trusted with the token.
    std::shared_ptr<grpc::ChannelCredentials> credentials;
  };

  // `target` is gRPC's: "unix:/path" or "host:port". Asks the daemon for its limits, so a Client
  // that exists has spoken to a daemon. Later the connection is made anew whenever it breaks.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& target,
                                                         const Options& options,
                                                         absl::Time deadline);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // What the daemon said at Connect. A later life of the daemon may have other limits and has
  // another epoch.
  const v1::GetServerInfoResponse& server_info() const { return server_info_; }

  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(absl::Time deadline) const;
  // `budget` as --memory_budget of the daemon. For operators.
  absl::StatusOr<v1::SetBudgetResponse> SetBudget(absl::string_view budget,
                                                  absl::Time deadline) const;

  // If a reply was lost and the call sent again, `created` is false although this call created the
  // session.
  absl::StatusOr<v1::CreateSessionResponse> CreateSession(const v1::CreateSessionRequest& request,
                                                          absl::Time deadline) const;
  absl::StatusOr<v1::Session> GetSession(absl::string_view session_id, absl::Time deadline) const;
  absl::StatusOr<v1::Session> GetSessionByName(absl::string_view name, absl::Time deadline) const;
  // All pages. Sessions that come or go meanwhile may be listed or not.
  absl::StatusOr<std::vector<v1::Session>> ListSessions(absl::Time deadline) const;
  absl::Status DeleteSession(absl::string_view session_id, absl::Time deadline) const;
  absl::StatusOr<v1::Session> TruncateSession(const SessionVersion& session, uint64_t token_count,
                                              absl::Time deadline) const;
  absl::StatusOr<v1::Session> SealSession(const SessionVersion& session, absl::Time deadline) const;
  absl::StatusOr<v1::Session> TouchSession(absl::string_view session_id, absl::Time deadline) const;

  // Returns the hash that CreateSession takes.
  absl::StatusOr<std::string> PutCalibration(absl::string_view file, absl::Time deadline) const;
  absl::StatusOr<std::vector<v1::CalibrationInfo>> ListCalibrations(absl::Time deadline) const;

  // Appends whole arrays as one addition, cut into messages that the daemon accepts. After an error
  // the daemon may hold a prefix of them; sending all of them again is right. The memory behind
  // `tokens` is read until the call returns.
  absl::StatusOr<v1::AppendResponse> Append(const SessionVersion& session,
                                            absl::Span<const LayerTokens> tokens,
                                            absl::Time deadline) const;

  absl::StatusOr<v1::AttendResponse> Attend(const v1::AttendRequest& request,
                                            absl::Time deadline) const;

  // The deadline is that of the whole stream: when it passes, open another one and go on.
  std::unique_ptr<DecodeStream> OpenDecode(absl::Time deadline) const;

  // Copies tokens to `k` and `v`, dense, from their start on, and returns how many tokens came.
  // Both must have room for what `request` names; where they have not, INVALID_ARGUMENT and their
  // content is undefined. With ranges in the request both stay as they are.
  absl::StatusOr<uint64_t> Fetch(const v1::FetchRequest& request, absl::Span<char> k,
                                 absl::Span<char> v, absl::Time deadline) const;

 private:
  explicit Client(std::unique_ptr<Connection> connection);

  std::unique_ptr<Connection> connection_;
  v1::GetServerInfoResponse server_info_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CLIENT_H_
