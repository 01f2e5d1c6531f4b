// Tokens and queries between wire and engine. Here is checked what the engine's types cannot hold
// and what bounds the conversion and its reply; what depends on the session is the engine's to
// check.
//
// The structs made here view the message's bytes: the message must outlive the engine's call.
#ifndef KVDEPOT_SERVER_SERVICES_TOKEN_CONVERT_H_
#define KVDEPOT_SERVER_SERVICES_TOKEN_CONVERT_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/options.h"
#include "server/services/buffer_convert.h"
#include "server/session_types.h"

namespace kvdepot {

// INVALID_ARGUMENT names field, value and limit, here and below. Errors of `find` and of ranges as
// in buffer_convert.h.
absl::StatusOr<TokenChunk> ToTokenChunk(const v1::AppendRequest& request, const Options& options,
                                        const BufferFinder& find);

absl::StatusOr<int> ToLayer(absl::string_view field, uint32_t layer, const EngineOptions& limits);

// RESOURCE_EXHAUSTED if the reply could be larger than a message: it holds an fp32 for each value
// of the queries, so they may take 7/16 of a message.
absl::StatusOr<std::vector<AttendQuery>> ToAttendQueries(const v1::AttendRequest& request,
                                                         const Options& options,
                                                         const BufferFinder& find);
absl::StatusOr<std::vector<DecodeStep>> ToDecodeSteps(const v1::DecodeRequest& request,
                                                      const Options& options,
                                                      const BufferFinder& find);

// Moves the bytes into the reply.
void ToProto(AttendResult result, v1::AttendOutput* output);
void ToProto(int layer, FetchedTokens tokens, v1::TokenChunk* chunk);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_TOKEN_CONVERT_H_
