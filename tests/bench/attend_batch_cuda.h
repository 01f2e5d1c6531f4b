// Batches of sessions in device memory, ready to be attended to: for benches and endurance tests.
//
// Time does not depend on values, so codes are random bits; tables and token scales are such that
// logits and outputs stay finite. A failure of CUDA ends the process.
#ifndef KVDEPOT_TESTS_BENCH_ATTEND_BATCH_CUDA_H_
#define KVDEPOT_TESTS_BENCH_ATTEND_BATCH_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpu/attend_launch.h"
#include "gpu/calibration.h"
#include "gpu/device_head.h"
#include "gpu/device_memory.h"
#include "gpu/shape.h"
#include "gpu/token_run.h"

namespace kvdepot {

// Pattern numbers of K and V, which repeat over the KV heads, and shuffled channel orders. None:
// no heads, so everything of a batch is exact.
LayerCalibration CalibrationOfPatterns(const LayerShape& shape, const std::vector<int>& k_patterns,
                                       const std::vector<int>& v_patterns);

struct AttendBatchRequest {
  LayerShape shape;
  std::vector<int> lengths;  // tokens, one a session
  int query_tokens = 1;
  int tail_tokens = -1;  // at least; what the rule of seals leaves after a prompt if negative
  LayerCalibration calibration;
  int copies = 1;  // batches of the same lengths in memory of their own, for caches' sake
};

// Sessions in bf16, and a workspace of its own: batches may be attended to side by side, the copies
// of one batch may not.
class AttendBatch {
 public:
  explicit AttendBatch(AttendBatchRequest request);

  // Enqueues the attention of one copy; may be captured in a graph.
  cudaError_t Launch(int copy, cudaStream_t stream) const;

  // Segments, sinks and tails of one copy.
  double bytes() const { return bytes_; }

  // Device memory: [query token][query_head][channel] of one session of one copy, written by
  // Launch, and the queries in bf16.
  float* output(int copy, int session) const { return stored(copy, session).cell.output; }
  const std::byte* queries(int copy, int session) const { return stored(copy, session).cell.q; }
  size_t output_values() const;

  // The decoded values of tokens [first, first + count) of a session of copy 0, to device memory:
  // [token][kv_head][channel] in fp32. Waits until they are there.
  void Decode(int session, int first, int count, float* k, float* v) const;

 private:
  struct Stored {
    AttendCell cell = {};
    std::vector<TokenRun> runs;  // in order of position
  };

  const Stored& stored(int copy, int session) const {
    return sessions_[static_cast<size_t>(copy) * request_.lengths.size() +
                     static_cast<size_t>(session)];
  }
  bool has_planes() const { return !request_.calibration.heads.empty(); }
  std::byte* Allocate(size_t bytes);
  template <class T>
  T* Upload(const std::vector<T>& values);
  Stored MakeSession(int length, int copy);
  CodedRun MakePlanes(int count, int position, Stored& session, int copy);
  ExactRun MakeExact(int capacity, int count, int position, Stored& session, int copy);

  const AttendBatchRequest request_;
  std::vector<DeviceBuffer> memory_;
  const DeviceHead* heads_ = nullptr;
  AttendLaunch launch_;
  std::vector<Stored> sessions_;          // of every copy
  std::vector<const AttendCell*> cells_;  // one array a copy
  int multiprocessors_ = 0;
  double bytes_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_BENCH_ATTEND_BATCH_CUDA_H_
