#include "client/kvdepot.h"

#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/cuda_mapped_stream.h"
#include "client/lease.h"
#include "client/mapped_session.h"
#include "client/registered_buffer.h"
#include "client/target.h"

// What kvdepot.h declares.
// NOLINTBEGIN(readability-identifier-naming)
struct kvdepot_lease {
  std::unique_ptr<kvdepot::Client> client;
  std::shared_ptr<kvdepot::Lease> lease;
};
struct kvdepot_session {
  std::unique_ptr<kvdepot::MappedSession> session;
};
struct kvdepot_buffer {
  const kvdepot::Client* client;
  std::unique_ptr<kvdepot::RegisteredBuffer> buffer;
};
struct kvdepot_stream {
  explicit kvdepot_stream(int threads) : stream(threads) {}
  kvdepot::MappedStream stream;
};
struct kvdepot_cuda_stream {
  std::unique_ptr<kvdepot::CudaMappedStream> stream;
};
// NOLINTEND(readability-identifier-naming)

namespace {

constexpr int kThreadsMax = 1024;

std::string& LastMessage() {
  thread_local std::string message;
  return message;
}

// The numbers of absl's codes are gRPC's.
int Return(const absl::Status& status) {
  if (status.ok()) return KVDEPOT_OK;
  LastMessage() = std::string(status.message());
  return static_cast<int>(status.code());
}

// Runs `call`, which returns a Status, and lets no exception out.
template <typename Call>
int Guard(const Call& call) noexcept {
  try {
    try {
      return Return(call());
    } catch (const std::bad_alloc&) {
      return Return(absl::ResourceExhaustedError("memory: the process has none left"));
    } catch (const std::exception& error) {
      return Return(absl::InternalError(error.what()));
    }
  } catch (...) {
    // Not even for the message is there memory.
    return KVDEPOT_INTERNAL;
  }
}

absl::Status CheckPointer(const void* pointer, absl::string_view name) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": NULL, must be set"));
}

absl::Status CheckSize(size_t size, size_t least, const char* name) {
  if (size >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ".struct_size: ", size, ", must be at least ", least));
}

absl::Time After(double seconds) { return absl::Now() + absl::Seconds(seconds); }

std::string Text(const char* text) { return text == nullptr ? "" : text; }

absl::Status Map(kvdepot_lease* lease, const std::string& session_id, int access,
                 uint32_t room_tokens, absl::Time deadline, kvdepot_session** session) {
  if (access != KVDEPOT_READ && access != KVDEPOT_WRITE) {
    return absl::InvalidArgumentError(
        absl::StrCat("access: ", access, ", must be KVDEPOT_READ or KVDEPOT_WRITE"));
  }
  kvdepot::MappedSession::Options options;
  options.access = access == KVDEPOT_WRITE ? kvdepot::MapAccess::kWrite : kvdepot::MapAccess::kRead;
  options.room_tokens = room_tokens;
  absl::StatusOr<std::unique_ptr<kvdepot::MappedSession>> mapped =
      kvdepot::MappedSession::Open(lease->lease, session_id, options, deadline);
  if (!mapped.ok()) return mapped.status();
  *session = new kvdepot_session{*std::move(mapped)};
  return absl::OkStatus();
}

absl::StatusOr<const kvdepot::LayerShape*> LayerOf(const kvdepot_session& session, size_t layer) {
  const std::vector<kvdepot::LayerShape>& layers = session.session->shape().layers;
  if (layer < layers.size()) return &layers[layer];
  return absl::InvalidArgumentError(
      absl::StrCat("layer: ", layer, ", the session has ", layers.size()));
}

absl::StatusOr<int> TokenCount(size_t count) {
  if (count <= static_cast<size_t>(std::numeric_limits<int>::max())) return static_cast<int>(count);
  return absl::InvalidArgumentError(absl::StrCat("token_count: ", count, ", must fit an int"));
}

// One of the caller's queries in a stream's own form.
kvdepot::MappedStream::Query Of(const kvdepot_query& from, int tokens, bool appends,
                                const kvdepot::MappedStream* /*stream*/) {
  kvdepot::MappedStream::Query to;
  to.session = from.session->session.get();
  if (appends) {
    to.tokens = {static_cast<const std::byte*>(from.k), static_cast<const std::byte*>(from.v),
                 tokens};
  }
  to.query_tokens = tokens;
  to.q = static_cast<const std::byte*>(from.q);
  to.output = from.output;
  to.log_sum_exp = from.log_sum_exp;
  return to;
}
kvdepot::CudaMappedStream::Query Of(const kvdepot_query& from, int tokens, bool /*appends*/,
                                    const kvdepot::CudaMappedStream* /*stream*/) {
  return {from.session->session.get(),
          static_cast<const std::byte*>(from.k),
          static_cast<const std::byte*>(from.v),
          tokens,
          static_cast<const std::byte*>(from.q),
          from.output,
          from.log_sum_exp};
}

template <typename Stream>
absl::StatusOr<std::vector<typename Stream::Query>> Convert(const kvdepot_query* queries,
                                                            size_t count, bool appends,
                                                            const Stream* stream) {
  std::vector<typename Stream::Query> converted;
  if (count == 0) return converted;
  absl::Status status = CheckPointer(queries, "queries");
  if (status.ok()) status = CheckSize(queries->struct_size, sizeof(kvdepot_query), "queries[0]");
  if (!status.ok()) return status;
  // The caller's header may be newer, and its structs larger.
  const size_t stride = queries->struct_size;
  for (size_t i = 0; i < count; ++i) {
    const auto& query = *reinterpret_cast<const kvdepot_query*>(
        reinterpret_cast<const std::byte*>(queries) + i * stride);
    const std::string name = absl::StrCat("queries[", i, "]");
    if (query.struct_size != stride) {
      return absl::InvalidArgumentError(absl::StrCat(name, ".struct_size: ", query.struct_size,
                                                     ", must be that of queries[0], ", stride));
    }
    status = CheckPointer(query.session, name + ".session");
    if (status.ok()) status = CheckPointer(query.q, name + ".q");
    if (status.ok()) status = CheckPointer(query.output, name + ".output");
    if (status.ok()) status = CheckPointer(query.log_sum_exp, name + ".log_sum_exp");
    if (status.ok() && appends) status = CheckPointer(query.k, name + ".k");
    if (status.ok() && appends) status = CheckPointer(query.v, name + ".v");
    if (!status.ok()) return status;
    const absl::StatusOr<int> tokens = TokenCount(query.token_count);
    if (!tokens.ok()) return tokens.status();
    converted.push_back(Of(query, *tokens, appends, stream));
  }
  return converted;
}

// AppendAttend or Attend of a stream of either kind.
template <typename Stream>
absl::Status RunQueries(Stream* stream, size_t layer, float scale, const kvdepot_query* queries,
                        size_t query_count, bool appends) {
  const auto converted = Convert(queries, query_count, appends, stream);
  if (!converted.ok()) return converted.status();
  return appends ? stream->AppendAttend(layer, scale, *converted)
                 : stream->Attend(layer, scale, *converted);
}

}  // namespace

extern "C" {

uint32_t kvdepot_abi_version(void) { return KVDEPOT_ABI_VERSION; }

const char* kvdepot_error_message(void) { return LastMessage().c_str(); }

int kvdepot_lease_open(const char* target, const char* token, double timeout_seconds,
                       kvdepot_lease** lease) {
  return Guard([&] {
    absl::Status status = CheckPointer(lease, "lease");
    if (!status.ok()) return status;
    const std::string daemon = kvdepot::TargetOf(Text(target));
    const absl::Time deadline = After(timeout_seconds);
    kvdepot::Client::Options options;
    options.token = Text(token);
    absl::StatusOr<std::unique_ptr<kvdepot::Client>> client =
        kvdepot::Client::Connect(daemon, options, deadline);
    if (!client.ok()) return client.status();
    absl::StatusOr<std::shared_ptr<kvdepot::Lease>> opened =
        kvdepot::Lease::Open(daemon, options, deadline);
    if (!opened.ok()) return opened.status();
    *lease = new kvdepot_lease{*std::move(client), *std::move(opened)};
    return absl::OkStatus();
  });
}

int kvdepot_lease_status(const kvdepot_lease* lease) {
  return Guard([&] { return lease->lease->status(); });
}

void kvdepot_lease_close(kvdepot_lease* lease) {
  Guard([&] {
    delete lease;
    return absl::OkStatus();
  });
}

int kvdepot_session_create(kvdepot_lease* lease, const kvdepot_session_spec* spec, int access,
                           uint32_t room_tokens, double timeout_seconds,
                           kvdepot_session** session) {
  return Guard([&] {
    absl::Status status = CheckPointer(lease, "lease");
    if (status.ok()) status = CheckPointer(spec, "spec");
    if (status.ok()) status = CheckPointer(session, "session");
    if (status.ok()) status = CheckSize(spec->struct_size, sizeof(*spec), "spec");
    if (status.ok() && spec->layer_count > 0) status = CheckPointer(spec->layers, "spec.layers");
    if (!status.ok()) return status;
    kvdepot::v1::CreateSessionRequest request;
    request.set_name(Text(spec->name));
    request.set_model(Text(spec->model));
    request.set_calibration(Text(spec->calibration));
    // The numbers are the contract's, and what is none of them is refused by the daemon.
    request.set_dtype(static_cast<kvdepot::v1::Dtype>(spec->dtype));
    request.set_codec(static_cast<kvdepot::v1::Codec>(spec->codec));
    request.set_profile(static_cast<kvdepot::v1::Profile>(spec->profile));
    for (size_t i = 0; i < spec->layer_count; ++i) {
      const kvdepot_layer_shape& from = spec->layers[i];
      kvdepot::v1::LayerShape* const layer = request.add_layers();
      layer->set_kv_heads(from.kv_heads);
      layer->set_query_heads(from.query_heads);
      layer->set_head_dim(from.head_dim);
      layer->set_sliding_window(from.sliding_window);
      layer->set_soft_cap(from.soft_cap);
    }
    const absl::Time deadline = After(timeout_seconds);
    const absl::StatusOr<kvdepot::v1::CreateSessionResponse> created =
        lease->client->CreateSession(request, deadline);
    if (!created.ok()) return created.status();
    return Map(lease, created->session().id(), access, room_tokens, deadline, session);
  });
}

int kvdepot_session_open(kvdepot_lease* lease, const char* name, int access, uint32_t room_tokens,
                         double timeout_seconds, kvdepot_session** session) {
  return Guard([&] {
    absl::Status status = CheckPointer(lease, "lease");
    if (status.ok()) status = CheckPointer(name, "name");
    if (status.ok()) status = CheckPointer(session, "session");
    if (!status.ok()) return status;
    const absl::Time deadline = After(timeout_seconds);
    const absl::StatusOr<kvdepot::v1::Session> found =
        lease->client->GetSessionByName(name, deadline);
    if (!found.ok()) return found.status();
    return Map(lease, found->id(), access, room_tokens, deadline, session);
  });
}

void kvdepot_session_close(kvdepot_session* session) {
  Guard([&] {
    delete session;
    return absl::OkStatus();
  });
}

int kvdepot_session_get_state(const kvdepot_session* session, kvdepot_session_state* state) {
  return Guard([&] {
    absl::Status status = CheckPointer(session, "session");
    if (status.ok()) status = CheckPointer(state, "state");
    if (status.ok()) status = CheckSize(state->struct_size, sizeof(*state), "state");
    if (!status.ok()) return status;
    state->committed_token_count = session->session->committed_token_count();
    state->generation = session->session->generation();
    state->directory_version = session->session->directory_version();
    state->room_tokens = session->session->room_tokens();
    return absl::OkStatus();
  });
}

int kvdepot_session_token_count(const kvdepot_session* session, size_t layer, uint64_t* count) {
  return Guard([&] {
    absl::Status status = CheckPointer(session, "session");
    if (status.ok()) status = CheckPointer(count, "count");
    if (!status.ok()) return status;
    status = LayerOf(*session, layer).status();
    if (!status.ok()) return status;
    *count = session->session->token_count(layer);
    return absl::OkStatus();
  });
}

int kvdepot_session_error(const kvdepot_session* session) {
  return Guard([&] { return session->session->error(); });
}

void kvdepot_session_clear_error(kvdepot_session* session) {
  Guard([&] {
    session->session->ClearError();
    return absl::OkStatus();
  });
}

int kvdepot_append(kvdepot_session* session, size_t layer, const void* k, const void* v,
                   size_t token_count) {
  return Guard([&] {
    absl::Status status = CheckPointer(session, "session");
    if (status.ok()) status = CheckPointer(k, "k");
    if (status.ok()) status = CheckPointer(v, "v");
    if (!status.ok()) return status;
    const absl::StatusOr<int> tokens = TokenCount(token_count);
    if (!tokens.ok()) return tokens.status();
    return session->session->Append(
        layer, {static_cast<const std::byte*>(k), static_cast<const std::byte*>(v), *tokens});
  });
}

int kvdepot_commit(kvdepot_session* session, uint32_t room_tokens, double timeout_seconds) {
  return Guard([&] { return session->session->Commit(After(timeout_seconds), room_tokens); });
}

int kvdepot_refresh(kvdepot_session* session, double timeout_seconds) {
  return Guard([&] { return session->session->Refresh(After(timeout_seconds)); });
}

int kvdepot_truncate(kvdepot_session* session, uint64_t token_count, double timeout_seconds) {
  return Guard([&] { return session->session->Truncate(token_count, After(timeout_seconds)); });
}

int kvdepot_buffer_register(kvdepot_lease* lease, void* memory, size_t size_bytes,
                            double timeout_seconds, kvdepot_buffer** buffer) {
  return Guard([&] {
    absl::Status status = CheckPointer(lease, "lease");
    if (status.ok()) status = CheckPointer(buffer, "buffer");
    if (!status.ok()) return status;
    const bool on_device = !lease->lease->device().empty();
    if (on_device != (memory != nullptr)) {
      return absl::InvalidArgumentError(on_device
                                            ? "memory: NULL, must be set, the daemon serves a GPU"
                                            : "memory: set, must be NULL, the daemon serves a CPU");
    }
    const absl::Time deadline = After(timeout_seconds);
    absl::StatusOr<std::unique_ptr<kvdepot::RegisteredBuffer>> registered =
        on_device ? kvdepot::RegisteredBuffer::OfDevice(lease->lease, memory, size_bytes, deadline)
                  : kvdepot::RegisteredBuffer::OfHost(lease->lease, size_bytes, deadline);
    if (!registered.ok()) return registered.status();
    *buffer = new kvdepot_buffer{lease->client.get(), *std::move(registered)};
    return absl::OkStatus();
  });
}

void* kvdepot_buffer_data(const kvdepot_buffer* buffer) {
  return buffer == nullptr ? nullptr : buffer->buffer->data();
}

int kvdepot_buffer_close(kvdepot_buffer* buffer, double timeout_seconds) {
  return Guard([&] {
    if (buffer == nullptr) return absl::OkStatus();
    absl::Status status = buffer->buffer->Unregister(After(timeout_seconds));
    if (status.ok()) delete buffer;
    return status;
  });
}

int kvdepot_fetch(const kvdepot_session* session, size_t layer, uint64_t position,
                  uint64_t token_count, int dtype, kvdepot_buffer* buffer, size_t k_offset,
                  size_t v_offset, double timeout_seconds) {
  return Guard([&] {
    absl::Status status = CheckPointer(session, "session");
    if (status.ok()) status = CheckPointer(buffer, "buffer");
    if (!status.ok()) return status;
    if (dtype < KVDEPOT_BF16 || dtype > KVDEPOT_FP32) {
      return absl::InvalidArgumentError(
          absl::StrCat("dtype: ", dtype, ", must be KVDEPOT_BF16, KVDEPOT_FP16 or KVDEPOT_FP32"));
    }
    const absl::StatusOr<const kvdepot::LayerShape*> shape = LayerOf(*session, layer);
    if (!shape.ok()) return shape.status();
    if (token_count == 0) return absl::InvalidArgumentError("token_count: 0, must be at least 1");
    const size_t row_bytes =
        (*shape)->row_values() * kvdepot::DTypeBytes(static_cast<kvdepot::DType>(dtype));
    if (token_count > buffer->buffer->size_bytes() / row_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("token_count: ", token_count,
                                                     ", the buffer has room for ",
                                                     buffer->buffer->size_bytes() / row_bytes));
    }
    kvdepot::v1::FetchRequest request;
    request.set_session_id(session->session->id());
    request.set_layer(static_cast<uint32_t>(layer));
    request.set_position(position);
    request.set_token_count(token_count);
    request.set_dtype(static_cast<kvdepot::v1::Dtype>(dtype));
    *request.mutable_k_range() = buffer->buffer->Range(k_offset, token_count * row_bytes);
    *request.mutable_v_range() = buffer->buffer->Range(v_offset, token_count * row_bytes);
    return buffer->client->Fetch(request, {}, {}, After(timeout_seconds)).status();
  });
}

int kvdepot_stream_create(int threads, kvdepot_stream** stream) {
  return Guard([&] {
    absl::Status status = CheckPointer(stream, "stream");
    if (!status.ok()) return status;
    if (threads < 1 || threads > kThreadsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("threads: ", threads, ", must be 1..", kThreadsMax));
    }
    *stream = new kvdepot_stream(threads);
    return absl::OkStatus();
  });
}

void kvdepot_stream_close(kvdepot_stream* stream) {
  Guard([&] {
    delete stream;
    return absl::OkStatus();
  });
}

int kvdepot_append_attend(kvdepot_stream* stream, size_t layer, float scale,
                          const kvdepot_query* queries, size_t query_count) {
  return Guard([&] {
    return RunQueries(&stream->stream, layer, scale, queries, query_count, /*appends=*/true);
  });
}

int kvdepot_attend(kvdepot_stream* stream, size_t layer, float scale, const kvdepot_query* queries,
                   size_t query_count) {
  return Guard([&] {
    return RunQueries(&stream->stream, layer, scale, queries, query_count, /*appends=*/false);
  });
}

int kvdepot_cuda_stream_create(void* cuda_stream, kvdepot_cuda_stream** stream) {
  return Guard([&] {
    absl::Status status = CheckPointer(stream, "stream");
    if (!status.ok()) return status;
    absl::StatusOr<std::unique_ptr<kvdepot::CudaMappedStream>> created =
        kvdepot::CudaMappedStream::Create(static_cast<CUstream_st*>(cuda_stream));
    if (!created.ok()) return created.status();
    *stream = new kvdepot_cuda_stream{*std::move(created)};
    return absl::OkStatus();
  });
}

void kvdepot_cuda_stream_close(kvdepot_cuda_stream* stream) {
  Guard([&] {
    delete stream;
    return absl::OkStatus();
  });
}

int kvdepot_cuda_append_attend(kvdepot_cuda_stream* stream, size_t layer, float scale,
                               const kvdepot_query* queries, size_t query_count) {
  return Guard([&] {
    return RunQueries(stream->stream.get(), layer, scale, queries, query_count, /*appends=*/true);
  });
}

int kvdepot_cuda_attend(kvdepot_cuda_stream* stream, size_t layer, float scale,
                        const kvdepot_query* queries, size_t query_count) {
  return Guard([&] {
    return RunQueries(stream->stream.get(), layer, scale, queries, query_count, /*appends=*/false);
  });
}

int kvdepot_cuda_append(kvdepot_cuda_stream* stream, kvdepot_session* session, size_t layer,
                        const void* k, const void* v, size_t token_count) {
  return Guard([&] {
    const absl::StatusOr<int> tokens = TokenCount(token_count);
    if (!tokens.ok()) return tokens.status();
    return stream->stream->Append(session->session.get(), layer, static_cast<const std::byte*>(k),
                                  static_cast<const std::byte*>(v), *tokens);
  });
}

int kvdepot_cuda_commit(kvdepot_cuda_stream* stream, kvdepot_session* session,
                        uint32_t room_tokens) {
  return Guard([&] { return stream->stream->Commit(session->session.get(), room_tokens); });
}

int kvdepot_cuda_wait(kvdepot_cuda_stream* stream, kvdepot_session* session,
                      double timeout_seconds) {
  return Guard(
      [&] { return stream->stream->Wait(session->session.get(), After(timeout_seconds)); });
}

int kvdepot_cuda_refresh(kvdepot_cuda_stream* stream, kvdepot_session* session) {
  return Guard([&] { return stream->stream->Refresh(session->session.get()); });
}

int kvdepot_cuda_truncate(kvdepot_cuda_stream* stream, kvdepot_session* session,
                          uint64_t token_count, double timeout_seconds) {
  return Guard([&] {
    return stream->stream->Truncate(session->session.get(), token_count, After(timeout_seconds));
  });
}

int kvdepot_cuda_clear_error(kvdepot_cuda_stream* stream, kvdepot_session* session) {
  return Guard([&] { return stream->stream->ClearError(session->session.get()); });
}

}  // extern "C"
