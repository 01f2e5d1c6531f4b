/* What an engine's loop looks like over a mapped session: decode SOCKET, that of a kvdepotd on
 * this machine. Built without Bazel:
 *   cc decode.c $(pkg-config --cflags --libs kvdepot_client) */
#include <kvdepot.h>
#include <stdio.h>
#include <stdlib.h>

enum { kLayers = 2, kKvHeads = 2, kQueryHeads = 4, kHeadDim = 64, kTokens = 400 };

static void check(int code, const char* what) {
  if (code == KVDEPOT_OK) return;
  fprintf(stderr, "%s: code %d: %s\n", what, code, kvdepot_error_message());
  exit(1);
}

/* Where a model would put keys, values and queries. */
static void fill(float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = (float)rand() / RAND_MAX - .5f;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  kvdepot_lease* lease = NULL;
  check(kvdepot_lease_open(argv[1], NULL, 10, &lease), "lease");
  const kvdepot_layer_shape shape = {kKvHeads, kQueryHeads, kHeadDim, 0, 0};
  const kvdepot_layer_shape layers[kLayers] = {shape, shape};
  kvdepot_session_spec spec = {.struct_size = sizeof(spec), .name = "example"};
  spec.dtype = KVDEPOT_FP32;
  spec.layers = layers;
  spec.layer_count = kLayers;
  kvdepot_session* session = NULL;
  check(kvdepot_session_create(lease, &spec, KVDEPOT_WRITE, 0, 10, &session), "session");
  kvdepot_stream* stream = NULL;
  check(kvdepot_stream_create(1, &stream), "stream");

  float k[kKvHeads * kHeadDim], v[kKvHeads * kHeadDim], q[kQueryHeads * kHeadDim];
  float output[kQueryHeads * kHeadDim], log_sum_exp[kQueryHeads];
  kvdepot_query query = {sizeof(query), session, 1, k, v, q, output, log_sum_exp};
  for (int token = 1; token <= kTokens; ++token) {
    for (size_t layer = 0; layer < kLayers; ++layer) {
      fill(k, kKvHeads * kHeadDim);
      fill(v, kKvHeads * kHeadDim);
      fill(q, kQueryHeads * kHeadDim);
      check(kvdepot_append_attend(stream, layer, 0, &query, 1), "append_attend");
    }
    if (token % 50 == 0) check(kvdepot_commit(session, 0, 10), "commit");
  }
  kvdepot_session_state state = {.struct_size = sizeof(state)};
  check(kvdepot_session_get_state(session, &state), "state");
  printf("%d tokens committed, output[0] %.6f\n", (int)state.committed_token_count, output[0]);
  kvdepot_stream_close(stream);
  kvdepot_session_close(session);
  kvdepot_lease_close(lease);
  return 0;
}
