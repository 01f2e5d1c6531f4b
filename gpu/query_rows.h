// What CPU attention kernels work on: query rows of one KV head and their running result.
#ifndef KVDEPOT_GPU_QUERY_ROWS_H_
#define KVDEPOT_GPU_QUERY_ROWS_H_

#include <cstdint>

#include "gpu/softmax_state.h"

namespace kvdepot {

// A kernel is called with at most this many rows.
inline constexpr int kQueryRowsMax = 48;

// Rows that read the same KV head: query heads of one or several query tokens. Owns nothing.
struct QueryRows {
  int count = 0;
  int head_dim = 0;
  const float* q = nullptr;         // [count][head_dim], times the softmax scale
  const uint64_t* begin = nullptr;  // [count], first position that a row sees
  const uint64_t* end = nullptr;    // [count], first position that it does not see any more
  float soft_cap = 0;
};

// State and output of every row over the tokens seen so far; kernels add to it.
struct RowResults {
  SoftmaxState* state = nullptr;  // [count]
  float* output = nullptr;        // [count][head_dim]
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_QUERY_ROWS_H_
