/* One session that one process writes while others attend to it, each in a container of its own
 * where deploy/compose.yaml runs them: shared_session write|read SOCKET cpu|cuda TOKENS cpu or cuda
 * is what the daemon serves. Ends when the session has TOKENS tokens; 0: goes on for ever, the
 * writer beginning anew at kContextTokens. Built as decode.c is. */
#define _POSIX_C_SOURCE 199309L
#include <dlfcn.h>
#include <inttypes.h>
#include <kvdepot.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { kKvHeads = 2, kQueryHeads = 4, kHeadDim = 64, kCommitTokens = 16, kContextTokens = 4096 };
enum { kTokenMilliseconds = 20, kPollMilliseconds = 5 };
static const char kName[] = "shared session";
static const double kTimeoutSeconds = 30;

static void check(int code, const char* what) {
  if (code == KVDEPOT_OK) return;
  fprintf(stderr, "%s: code %d: %s\n", what, code, kvdepot_error_message());
  exit(1);
}

static void pause_for(long milliseconds) {
  const struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&time, NULL);
}

/* ---- Either of the two devices ---- */

static kvdepot_stream* cpu_stream;
static kvdepot_cuda_stream* cuda_stream;

/* The driver's functions, so that this program starts without a GPU too. A real engine has its own
 * arrays on the device. */
static int (*allocate)(void** memory, size_t bytes, unsigned flags);
static int (*synchronize)(void);

static void* driver_function(const char* name) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* function = driver == NULL ? NULL : dlsym(driver, name);
  if (function == NULL) {
    fprintf(stderr, "cuda: %s\n", dlerror());
    exit(1);
  }
  return function;
}

static void start(const char* device) {
  if (strcmp(device, "cuda") != 0) {
    check(kvdepot_stream_create(1, &cpu_stream), "stream");
    return;
  }
  int (*initialise)(unsigned);
  int (*retain)(void**, int);
  int (*set_current)(void*);
  /* What POSIX says to do: ISO C does not know that data may point to code. */
  *(void**)&initialise = driver_function("cuInit");
  *(void**)&retain = driver_function("cuDevicePrimaryCtxRetain");
  *(void**)&set_current = driver_function("cuCtxSetCurrent");
  *(void**)&allocate = driver_function("cuMemAllocManaged");
  *(void**)&synchronize = driver_function("cuCtxSynchronize");
  void* context = NULL;
  if (initialise(0) != 0 || retain(&context, 0) != 0 || set_current(context) != 0) {
    fprintf(stderr, "cuda: no device\n");
    exit(1);
  }
  check(kvdepot_cuda_stream_create(NULL, &cuda_stream), "stream");
}

/* Reached by this process and, on a GPU, by its kernels. */
static float* new_array(size_t count) {
  void* memory = NULL;
  enum { kAttachGlobal = 1 };
  const int failed = allocate == NULL ? (memory = malloc(count * sizeof(float))) == NULL
                                      : allocate(&memory, count * sizeof(float), kAttachGlobal);
  if (failed) {
    fprintf(stderr, "no memory\n");
    exit(1);
  }
  return memory;
}

static void finish(void) {
  if (synchronize != NULL && synchronize() != 0) {
    fprintf(stderr, "cuda: a kernel has failed\n");
    exit(1);
  }
}

static void append_attend(const kvdepot_query* query) {
  check(cuda_stream ? kvdepot_cuda_append_attend(cuda_stream, 0, 0, query, 1)
                    : kvdepot_append_attend(cpu_stream, 0, 0, query, 1),
        "append_attend");
  finish();
}

static void commit(kvdepot_session* session) {
  if (!cuda_stream) {
    check(kvdepot_commit(session, 0, kTimeoutSeconds), "commit");
    return;
  }
  check(kvdepot_cuda_commit(cuda_stream, session, 0), "commit");
  check(kvdepot_cuda_wait(cuda_stream, session, kTimeoutSeconds), "wait");
  check(kvdepot_cuda_refresh(cuda_stream, session), "refresh");
}

static void begin_anew(kvdepot_session* session) {
  check(cuda_stream ? kvdepot_cuda_truncate(cuda_stream, session, 0, kTimeoutSeconds)
                    : kvdepot_truncate(session, 0, kTimeoutSeconds),
        "truncate");
}

static void attend(const kvdepot_query* query) {
  if (cuda_stream) check(kvdepot_cuda_refresh(cuda_stream, query->session), "refresh");
  check(cuda_stream ? kvdepot_cuda_attend(cuda_stream, 0, 0, query, 1)
                    : kvdepot_attend(cpu_stream, 0, 0, query, 1),
        "attend");
  finish();
}

/* ---- The two programs ---- */

static uint64_t committed(const kvdepot_session* session) {
  kvdepot_session_state state = {.struct_size = sizeof(state)};
  check(kvdepot_session_get_state(session, &state), "state");
  return state.committed_token_count;
}

/* Always the same query: whoever attends to the same tokens prints the same. */
static kvdepot_query new_query(kvdepot_session* session) {
  kvdepot_query query = {.struct_size = sizeof(query), .session = session, .token_count = 1};
  float* q = new_array(kQueryHeads * kHeadDim);
  for (int i = 0; i < kQueryHeads * kHeadDim; ++i) q[i] = (float)(i % 7 - 3) / 4;
  query.q = q;
  query.output = new_array(kQueryHeads * kHeadDim);
  query.log_sum_exp = new_array(kQueryHeads);
  return query;
}

static void print(const char* what, uint64_t tokens, const kvdepot_query* query) {
  printf("%s %" PRIu64 " tokens: output %.4f, log-sum-exp %.4f\n", what, tokens, query->output[0],
         query->log_sum_exp[0]);
}

static void fill(float* values) {
  for (int i = 0; i < kKvHeads * kHeadDim; ++i) values[i] = (float)rand() / RAND_MAX - .5f;
}

static void write_session(kvdepot_lease* lease, uint64_t tokens) {
  const kvdepot_layer_shape layer = {kKvHeads, kQueryHeads, kHeadDim, 0, 0};
  kvdepot_session_spec spec = {.struct_size = sizeof(spec), .name = kName, .layers = &layer};
  spec.dtype = KVDEPOT_FP32;
  spec.layer_count = 1;
  kvdepot_session* session = NULL;
  check(kvdepot_session_create(lease, &spec, KVDEPOT_WRITE, 0, kTimeoutSeconds, &session),
        "session");
  kvdepot_query query = new_query(session);
  float *k = new_array(kKvHeads * kHeadDim), *v = new_array(kKvHeads * kHeadDim);
  query.k = k;
  query.v = v;
  /* A writer of before may have left tokens: this one goes on behind them. */
  for (uint64_t count = committed(session); tokens == 0 || count < tokens;) {
    if (count == kContextTokens) {
      begin_anew(session);
      count = 0;
    }
    fill(k);
    fill(v);
    append_attend(&query);
    if (++count % kCommitTokens == 0 || count == tokens) {
      commit(session);
      print("wrote", count, &query);
    }
    pause_for(kTokenMilliseconds);
  }
}

static void read_session(kvdepot_lease* lease, uint64_t tokens) {
  kvdepot_session* session = NULL;
  int code = KVDEPOT_NOT_FOUND;
  while (code == KVDEPOT_NOT_FOUND) {
    code = kvdepot_session_open(lease, kName, KVDEPOT_READ, 0, kTimeoutSeconds, &session);
    if (code == KVDEPOT_NOT_FOUND) pause_for(kPollMilliseconds);
  }
  check(code, "session");
  kvdepot_query query = new_query(session);
  for (uint64_t seen = 0; tokens == 0 || seen < tokens; pause_for(kPollMilliseconds)) {
    check(kvdepot_refresh(session, kTimeoutSeconds), "refresh");
    const uint64_t count = committed(session);
    if (count == seen || count == 0) continue;
    attend(&query);
    print("read", count, &query);
    seen = count;
  }
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  kvdepot_lease* lease = NULL;
  check(kvdepot_lease_open(argv[2], NULL, kTimeoutSeconds, &lease), "lease");
  start(argv[3]);
  const uint64_t tokens = strtoull(argv[4], NULL, 10);
  if (strcmp(argv[1], "write") == 0) {
    write_session(lease, tokens);
  } else {
    read_session(lease, tokens);
  }
  kvdepot_stream_close(cpu_stream);
  kvdepot_cuda_stream_close(cuda_stream);
  kvdepot_lease_close(lease);
  return 0;
}
