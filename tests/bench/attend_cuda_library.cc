// AttendBatch for tests/bench/attend.py, which loads this through ctypes and launches attends into
// its own CUDA graphs.
#include "tests/bench/attend_batch_cuda.h"

using kvdepot::AttendBatch;

extern "C" {

// `tail_tokens` as in AttendBatchRequest. No patterns (pattern_count 0): everything is exact.
void* AttendBenchCreate(const int* lengths, int sessions, int kv_heads, int query_heads,
                        int head_dim, int query_tokens, int tail_tokens, const int* k_patterns,
                        const int* v_patterns, int pattern_count, int copies) {
  kvdepot::AttendBatchRequest request;
  request.shape = {kv_heads, query_heads, head_dim, 0, 0};
  request.lengths.assign(lengths, lengths + sessions);
  request.query_tokens = query_tokens;
  request.tail_tokens = tail_tokens;
  request.calibration =
      kvdepot::CalibrationOfPatterns(request.shape, {k_patterns, k_patterns + pattern_count},
                                     {v_patterns, v_patterns + pattern_count});
  request.copies = copies;
  return new AttendBatch(request);
}
void AttendBenchDestroy(void* batch) { delete static_cast<AttendBatch*>(batch); }
double AttendBenchBytes(void* batch) { return static_cast<AttendBatch*>(batch)->bytes(); }
int AttendBenchLaunch(void* batch, int copy, void* stream) {
  return static_cast<AttendBatch*>(batch)->Launch(copy, static_cast<cudaStream_t>(stream));
}

// Of copy 0, to device memory: queries in bf16 and the last launch's output in fp32, both
// [query token][query_head][channel].
int AttendBenchRead(void* batch, int session, void* queries, float* output) {
  const AttendBatch& from = *static_cast<AttendBatch*>(batch);
  const cudaError_t error = cudaMemcpy(queries, from.queries(0, session), 2 * from.output_values(),
                                       cudaMemcpyDeviceToDevice);
  if (error != cudaSuccess) return error;
  return cudaMemcpy(output, from.output(0, session), 4 * from.output_values(),
                    cudaMemcpyDeviceToDevice);
}
// AttendBatch::Decode.
void AttendBenchDecode(void* batch, int session, int first, int count, float* k, float* v) {
  static_cast<AttendBatch*>(batch)->Decode(session, first, count, k, v);
}
}
