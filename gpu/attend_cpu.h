// Attention of a batch on the CPU: who reads which tokens, and how partial results become one.
#ifndef KVDEPOT_GPU_ATTEND_CPU_H_
#define KVDEPOT_GPU_ATTEND_CPU_H_

#include <vector>

#include "absl/types/span.h"
#include "gpu/backend.h"
#include "gpu/planes/attend_cpu.h"
#include "gpu/worker_pool.h"

namespace kvdepot {

// Splits every item by KV head, by query rows and by tokens. The split depends on the item alone,
// and partial results are merged in index order: the same batch gives the same bits whatever the
// number of threads.
class CpuAttention {
 public:
  // `pool` outlives this.
  explicit CpuAttention(WorkerPool* pool);

  void Attend(absl::Span<const AttendItem> items);

 private:
  // Query rows of one KV head of one item; rows are query token after query token, head after head.
  struct RowGroup {
    const AttendItem* item;
    int kv_head;
    int first_row;
    int rows;
    int part_begin;  // its parts are parts_[part_begin, part_end)
    int part_end;
  };

  // Runs [run_begin, run_end) for one row group.
  struct Part {
    int group;
    int run_begin;
    int run_end;
    uint64_t position;  // of the first token
    size_t row;         // of its first row in states_ and, times head_dim, ...
    size_t value;       // ... of its first value in outputs_
  };

  void Plan(const AttendItem& item);
  void Run(const Part& part, int thread);
  void Merge(const RowGroup& group);

  WorkerPool* pool_;
  std::vector<planes::HeadAttention> planes_;  // one a thread
  // Of the call in progress.
  std::vector<RowGroup> groups_;
  std::vector<Part> parts_;
  std::vector<float> outputs_;
  std::vector<SoftmaxState> states_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_CPU_H_
