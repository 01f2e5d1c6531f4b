/* Mapped sessions of a KV Depot daemon, for C and whatever calls C.
 *
 *   kvdepot_lease* lease;                             // this process's right to map
 *   kvdepot_session* session;                         // one session, mapped
 *   kvdepot_stream* stream;                           // who attends, one a thread
 *   kvdepot_lease_open("/run/kvdepotd.sock", NULL, 5.0, &lease);
 *   kvdepot_session_create(lease, &spec, KVDEPOT_WRITE, 0, 5.0, &session);
 *   kvdepot_stream_create(1, &stream);
 *   for each token:
 *     for each layer: kvdepot_append_attend(stream, layer, 0, &query, 1);
 *     every few dozen: kvdepot_commit(session, 0, 5.0);
 *
 * Every function that returns int returns KVDEPOT_OK or another code below, after which
 * kvdepot_error_message() says, on the same thread, what was wrong. A refused call changes nothing.
 * No exception leaves this library, and nothing in it ends the process for what a caller passes,
 * but for pointers that are none.
 *
 * Handles are closed in the order session and buffer, lease; streams at any time. One thread at a
 * time appends to a session, truncates it or clears its error; one thread at a time uses a stream.
 * Otherwise all is thread-safe. Times are seconds that a call may wait for the daemon. Strings are
 * UTF-8 and read during the call only.
 *
 * Where the daemon serves a GPU, sessions are memory of that GPU, and a kvdepot_cuda_stream stands
 * in place of a kvdepot_stream: see the end of this file.
 *
 * Structs that grow carry their size: set struct_size to sizeof of the struct, and the rest to zero
 * where you have nothing to say. */
#ifndef KVDEPOT_CLIENT_KVDEPOT_H_
#define KVDEPOT_CLIENT_KVDEPOT_H_

#include <stddef.h>
#include <stdint.h>

/* Names are C's, not this repository's. */
/* NOLINTBEGIN(readability-identifier-naming) */

#ifdef __cplusplus
extern "C" {
#endif

/* The library's soname carries the same number. */
#define KVDEPOT_ABI_VERSION 1
uint32_t kvdepot_abi_version(void);

/* One meaning each, gRPC's numbers: proto/kvdepot/v1/kv_depot_service.proto. */
enum {
  KVDEPOT_OK = 0,
  KVDEPOT_CANCELLED = 1,
  KVDEPOT_UNKNOWN = 2,
  KVDEPOT_INVALID_ARGUMENT = 3,
  KVDEPOT_DEADLINE_EXCEEDED = 4,
  KVDEPOT_NOT_FOUND = 5,
  KVDEPOT_ALREADY_EXISTS = 6,
  KVDEPOT_PERMISSION_DENIED = 7,
  KVDEPOT_RESOURCE_EXHAUSTED = 8,
  KVDEPOT_FAILED_PRECONDITION = 9,
  KVDEPOT_ABORTED = 10,
  KVDEPOT_OUT_OF_RANGE = 11,
  KVDEPOT_UNIMPLEMENTED = 12,
  KVDEPOT_INTERNAL = 13,
  KVDEPOT_UNAVAILABLE = 14,
  KVDEPOT_DATA_LOSS = 15,
  KVDEPOT_UNAUTHENTICATED = 16
};

/* Of the last call on this thread that did not return KVDEPOT_OK; valid until the next one. */
const char* kvdepot_error_message(void);

typedef struct kvdepot_lease kvdepot_lease;
typedef struct kvdepot_session kvdepot_session;
typedef struct kvdepot_stream kvdepot_stream;

/* `target` is the path of the daemon's Unix socket, or gRPC's name of it; NULL: where kvdepotd of
 * the same user listens by default. `token` names the tenant; NULL: none is sent.
 * FAILED_PRECONDITION names both versions where daemon and library speak different ones. */
int kvdepot_lease_open(const char* target, const char* token, double timeout_seconds,
                       kvdepot_lease** lease);
/* OK, or why the lease has ended, once its connection shows it: UNAVAILABLE where the daemon has
 * gone. Its sessions stay readable; close them and it, and open another one. */
int kvdepot_lease_status(const kvdepot_lease* lease);
/* NULL is fine, here and below. Its sessions are closed. */
void kvdepot_lease_close(kvdepot_lease* lease);

enum { KVDEPOT_BF16 = 1, KVDEPOT_FP16 = 2, KVDEPOT_FP32 = 3 };
enum { KVDEPOT_RAW = 1, KVDEPOT_PLANES = 2, KVDEPOT_PACKKV = 3 };
enum { KVDEPOT_READ = 1, KVDEPOT_WRITE = 2 };

typedef struct kvdepot_layer_shape {
  uint32_t kv_heads;
  uint32_t query_heads;
  uint32_t head_dim;
  uint32_t sliding_window; /* 0: none */
  float soft_cap;          /* 0: none */
} kvdepot_layer_shape;

typedef struct kvdepot_session_spec {
  size_t struct_size;
  const char* name;
  const char* model;       /* NULL: empty */
  const char* calibration; /* hash; NULL: the session makes its own */
  int dtype;
  int codec;   /* 0: planes; packkv: with the defaults of PackKvOptions, session.proto */
  int profile; /* numbers of session.proto; 0: the codec's default; none of packkv */
  const kvdepot_layer_shape* layers;
  size_t layer_count;
} kvdepot_session_spec;

/* Creates the session, or takes the one of that name if it is the same, and maps it. `room_tokens`:
 * tokens that a writer wants room for in every layer; 0: the daemon's default.
 * FAILED_PRECONDITION: another process writes it. */
int kvdepot_session_create(kvdepot_lease* lease, const kvdepot_session_spec* spec, int access,
                           uint32_t room_tokens, double timeout_seconds, kvdepot_session** session);
/* Maps the session of that name. NOT_FOUND. */
int kvdepot_session_open(kvdepot_lease* lease, const char* name, int access, uint32_t room_tokens,
                         double timeout_seconds, kvdepot_session** session);
void kvdepot_session_close(kvdepot_session* session);

typedef struct kvdepot_session_state {
  size_t struct_size;
  uint64_t committed_token_count;
  uint64_t generation;
  uint64_t directory_version;
  uint64_t room_tokens; /* that fit in every layer before a commit */
} kvdepot_session_state;
int kvdepot_session_get_state(const kvdepot_session* session, kvdepot_session_state* state);
/* Tokens of one layer, the writer's own included. INVALID_ARGUMENT: no such layer. */
int kvdepot_session_token_count(const kvdepot_session* session, size_t layer, uint64_t* count);

/* The session's flag: OK, or why it is up (RESOURCE_EXHAUSTED: no room; INVALID_ARGUMENT: a value
 * that is not finite). While it is up nothing is appended, outputs and log-sum-exps are NaN, and
 * kvdepot_commit returns the same. */
int kvdepot_session_error(const kvdepot_session* session);
void kvdepot_session_clear_error(kvdepot_session* session);

/* k and v are [token][kv_head][channel] in the session's dtype, dense. What does not fit or is not
 * finite is not written and raises the flag, which is not this call's error. */
int kvdepot_append(kvdepot_session* session, size_t layer, const void* k, const void* v,
                   size_t token_count);
/* Makes the tokens that every layer has the session's; see kvdepot_session_create for room_tokens,
 * 0: as before. The daemon seals them behind its answer: attending gets faster, and memory free,
 * with the next commit, which needs no new tokens. */
int kvdepot_commit(kvdepot_session* session, uint32_t room_tokens, double timeout_seconds);
/* A reader's way to the newest tokens. */
int kvdepot_refresh(kvdepot_session* session, double timeout_seconds);
/* Keeps token_count tokens of every layer. */
int kvdepot_truncate(kvdepot_session* session, uint64_t token_count, double timeout_seconds);

/* Memory of this process that the daemon writes in place, for a process that wants committed tokens
 * as values and attends by itself. Closed before its lease. */
typedef struct kvdepot_buffer kvdepot_buffer;

/* Where the daemon serves a GPU: `memory` is the caller's, from cudaMalloc on that GPU, aligned to
 * 16 bytes, and outlives the buffer; the daemon can reach all of its allocation. On a CPU: `memory`
 * is NULL, and the buffer is new memory. */
int kvdepot_buffer_register(kvdepot_lease* lease, void* memory, size_t size_bytes,
                            double timeout_seconds, kvdepot_buffer** buffer);
void* kvdepot_buffer_data(const kvdepot_buffer* buffer);
/* KVDEPOT_OK: the daemon touches the memory no more, and `buffer` is gone; NULL is fine. Otherwise
 * it is still open, and the daemon may still write there, for a kvdepot_fetch whose time has
 * passed. */
int kvdepot_buffer_close(kvdepot_buffer* buffer, double timeout_seconds);
/* Writes `token_count` committed tokens of a layer, from `position` on, as values of `dtype` to the
 * buffer: K from byte k_offset on, V from v_offset on, each [token][kv_head][channel], dense; both
 * offsets are multiples of 16. Returns when they are there: what a GPU has queued that uses these
 * bytes must be done before. OUT_OF_RANGE: not all of them are there. */
int kvdepot_fetch(const kvdepot_session* session, size_t layer, uint64_t position,
                  uint64_t token_count, int dtype, kvdepot_buffer* buffer, size_t k_offset,
                  size_t v_offset, double timeout_seconds);

/* `threads` >= 1: how many compute, the caller's included. */
int kvdepot_stream_create(int threads, kvdepot_stream** stream);
void kvdepot_stream_close(kvdepot_stream* stream);

typedef struct kvdepot_query {
  size_t struct_size;
  kvdepot_session* session;
  size_t token_count;
  const void* k; /* kvdepot_attend: not used */
  const void* v;
  const void* q;      /* [token][query_head][channel] in the session's dtype */
  float* output;      /* [token][query_head][channel] */
  float* log_sum_exp; /* [token][query_head] */
} kvdepot_query;

/* Appends each query's tokens to its session and attends from them; returns when the outputs are
 * there. `scale` 0: 1 / sqrt(head_dim). Before anything is written, INVALID_ARGUMENT or
 * FAILED_PRECONDITION names the query that is wrong. */
int kvdepot_append_attend(kvdepot_stream* stream, size_t layer, float scale,
                          const kvdepot_query* queries, size_t query_count);
/* Attends from the last token_count positions of the layer. */
int kvdepot_attend(kvdepot_stream* stream, size_t layer, float scale, const kvdepot_query* queries,
                   size_t query_count);

/* ---- On a GPU ----
 *
 * Kernels of this process attend and append, on a CUDA stream of the caller's; everything is queued
 * in order there, and nothing waits but where it says so. All arrays, those of kvdepot_query
 * included, are device memory aligned to 16 bytes. kvdepot_append, kvdepot_commit, kvdepot_truncate
 * and kvdepot_session_clear_error are FAILED_PRECONDITION or of no effect for such a session: use
 * those below.
 *
 *   kvdepot_cuda_refresh(stream, session);            // once before a capture
 *   capture into a CUDA graph: for each layer: kvdepot_cuda_append_attend(stream, layer, ...);
 *   for each token: fill k, v and q of all layers, replay the graph on the same CUDA stream
 *     every few dozen: kvdepot_cuda_commit(stream, session, 0); kvdepot_cuda_refresh(stream,
 * session);
 *
 * The graph serves while sessions grow, are sealed and change directories. A token that does not
 * fit or is not finite raises the session's flag on the device: outputs and log-sum-exps are NaN
 * from then on, kvdepot_cuda_wait and the next kvdepot_cuda_commit return its error.
 *
 * Close a stream before its CUDA stream is destroyed. Graphs captured on it are replayed while it
 * and their sessions are open. Closing either waits for the CUDA stream. */
typedef struct kvdepot_cuda_stream kvdepot_cuda_stream;

/* `cuda_stream` is a cudaStream_t or CUstream of the current device, which stays current in later
 * calls; NULL is the legacy default stream. UNIMPLEMENTED: the library was built without CUDA. */
int kvdepot_cuda_stream_create(void* cuda_stream, kvdepot_cuda_stream** stream);
void kvdepot_cuda_stream_close(kvdepot_cuda_stream* stream);

/* As kvdepot_append_attend and kvdepot_attend. FAILED_PRECONDITION as well: the session's tokens
 * are appended on another stream, or the stream is being captured and did not see the session
 * before. */
int kvdepot_cuda_append_attend(kvdepot_cuda_stream* stream, size_t layer, float scale,
                               const kvdepot_query* queries, size_t query_count);
int kvdepot_cuda_attend(kvdepot_cuda_stream* stream, size_t layer, float scale,
                        const kvdepot_query* queries, size_t query_count);
/* Tokens of a prompt, as many as there is room for until the next commit. */
int kvdepot_cuda_append(kvdepot_cuda_stream* stream, kvdepot_session* session, size_t layer,
                        const void* k, const void* v, size_t token_count);
/* As kvdepot_commit, of what every layer has once the work queued so far is done. Returns at once.
 */
int kvdepot_cuda_commit(kvdepot_cuda_stream* stream, kvdepot_session* session,
                        uint32_t room_tokens);
/* Returns when all commits queued so far are answered, with the first error among the session's. */
int kvdepot_cuda_wait(kvdepot_cuda_stream* stream, kvdepot_session* session,
                      double timeout_seconds);
/* Work queued from here on uses what the last answered commit, or kvdepot_refresh, has brought.
 * FAILED_PRECONDITION in a capture. */
int kvdepot_cuda_refresh(kvdepot_cuda_stream* stream, kvdepot_session* session);
/* Keeps token_count tokens of every layer, after the answers to commits under way. */
int kvdepot_cuda_truncate(kvdepot_cuda_stream* stream, kvdepot_session* session,
                          uint64_t token_count, double timeout_seconds);
/* Lowers the session's flag for work queued from here on. */
int kvdepot_cuda_clear_error(kvdepot_cuda_stream* stream, kvdepot_session* session);

#ifdef __cplusplus
} /* extern "C" */
#endif

/* NOLINTEND(readability-identifier-naming) */

#endif /* KVDEPOT_CLIENT_KVDEPOT_H_ */
