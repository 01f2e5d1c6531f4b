// The query rows of one AttendRow: where their queries and results lie, and what they see.
#ifndef KVDEPOT_GPU_ATTEND_ROW_CUH_
#define KVDEPOT_GPU_ATTEND_ROW_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"

namespace kvdepot {

inline constexpr float kLn2 = 0.693147180559945f;
inline constexpr float kLog2E = 1.44269504088896f;

// Row r of a session and KV head: query token r / ratio, query head kv_head * ratio + r % ratio.
struct RowView {
  const AttendCell* cell;
  const uint8_t* v_order;  // null: places are channels
  uint32_t first_row;
  uint32_t rows;  // of the session and head; those past it are padding
  uint32_t ratio;
  uint32_t kv_head;
  uint32_t query_heads;

  static __device__ RowView Of(const AttendCell* cells, const AttendRow& at, uint32_t kv_heads,
                               uint32_t query_heads, uint32_t rows_per_tile) {
    const AttendCell* cell = &cells[at.cell];
    RowView view;
    view.cell = cell;
    view.v_order = cell->heads != nullptr ? cell->heads[at.kv_head].v_order : nullptr;
    view.ratio = query_heads / kv_heads;
    view.first_row = at.tile * rows_per_tile;
    view.rows = cell->query_tokens * view.ratio;
    view.kv_head = at.kv_head;
    view.query_heads = query_heads;
    return view;
  }

  __device__ bool Holds(int row) const { return first_row + row < rows; }
  // Of a row's query and output among [query token][query_head].
  __device__ size_t Index(int row) const {
    const uint32_t at = first_row + row;
    return static_cast<size_t>(at / ratio) * query_heads + kv_head * ratio + at % ratio;
  }
  __device__ uint32_t Position(int row) const {
    const uint32_t last = rows - 1;
    return cell->query_position + min(first_row + row, last) / ratio;
  }

  // Value `place` of a row's output from its state; log-sum-exp with place 0.
  template <int kHeadDim>
  __device__ void Store(int row, int place, float output, float reference, float sum) const {
    if (!Holds(row)) return;
    const size_t index = Index(row);
    const int channel = v_order != nullptr ? v_order[place] : place;
    cell->output[index * kHeadDim + channel] = sum > 0 ? output / sum : 0.0f;
    if (place == 0)
      cell->log_sum_exp[index] = sum > 0 ? (reference + log2f(sum)) * kLn2 : -INFINITY;
  }
};

// Which positions a row sees: from Begin(row) to before End(row).
struct RowLimits {
  RowView view;
  uint32_t window;
  // Every row of the tile sees [begin_all, end_all).
  uint32_t begin_all;
  uint32_t end_all;

  static __device__ RowLimits Of(const RowView& view, uint32_t rows_per_tile, uint32_t window) {
    RowLimits limits;
    limits.view = view;
    limits.window = window;
    limits.end_all = limits.End(0);
    limits.begin_all = limits.Begin(static_cast<int>(rows_per_tile) - 1);
    return limits;
  }
  __device__ uint32_t End(int row) const { return view.Position(row) + 1; }
  __device__ uint32_t Begin(int row) const {
    const uint32_t end = End(row);
    return window > 0 && end > window ? end - window : 0;
  }
};

__device__ __forceinline__ float4 LoadFour(const std::byte* values, DType dtype, size_t index) {
  if (dtype == DType::kFp32) return *reinterpret_cast<const float4*>(values + 4 * index);
  const uint2 bits = *reinterpret_cast<const uint2*>(values + 2 * index);
  if (dtype == DType::kBf16) {
    return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xFFFF0000u),
            __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xFFFF0000u)};
  }
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
  return {low.x, low.y, high.x, high.y};
}

// Distance of two rows in shared memory: lanes 4 g + t reading row t, value g of it meet no bank
// twice.
template <int kHeadDim>
inline constexpr int kRowStride = kHeadDim + 8;

// Queries times the scale as fp32 into q [rows][kRowStride], padding as zeros.
template <int kHeadDim>
__device__ void LoadQueries(const RowView& view, DType dtype, int rows, int lane, float* q) {
  constexpr int kFours = kHeadDim / 4;
  for (int i = lane; i < rows * kFours; i += 32) {
    const int row = i / kFours;
    const int channel = 4 * (i % kFours);
    float4 value = {0, 0, 0, 0};
    if (view.Holds(row)) {
      value = LoadFour(view.cell->q, dtype, view.Index(row) * kHeadDim + channel);
      const float scale = view.cell->scale;
      value = {value.x * scale, value.y * scale, value.z * scale, value.w * scale};
    }
    *reinterpret_cast<float4*>(q + row * kRowStride<kHeadDim> + channel) = value;
  }
}

// A logit to base 2 from q.k times the cell's scale.
__device__ __forceinline__ float Capped(float score, float soft_cap) {
  return soft_cap * kLog2E * tanhf(score);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_ROW_CUH_
