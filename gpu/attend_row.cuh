// The query rows of one row of a launch: where their queries and results lie, and what they see.
#ifndef KVDEPOT_GPU_ATTEND_ROW_CUH_
#define KVDEPOT_GPU_ATTEND_ROW_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/cuda_ptx.cuh"
#include "gpu/divider.cuh"

namespace kvdepot {

inline constexpr float kLn2 = 0.693147180559945f;

// Row r of a session and KV head: query token r / ratio, query head kv_head * ratio + r % ratio.
struct RowView {
  const AttendCell* cell;
  uint32_t first_row;
  Divider ratio;
  uint32_t kv_head;
  uint32_t query_heads;

  // Of the session and head; a tile's rows past them are padding.
  __device__ uint32_t rows() const { return cell->query_tokens * ratio.divisor; }
  // Channel of V at a place; null: places are channels.
  __device__ const uint8_t* v_order() const {
    return cell->heads != nullptr ? cell->heads[kv_head].v_order : nullptr;
  }
  // Of row `row` of the tile's query and output among [query token][query_head].
  __device__ size_t Index(int row) const {
    const uint32_t at = first_row + row;
    const uint32_t token = ratio.Of(at);
    return static_cast<size_t>(token) * query_heads + kv_head * ratio.divisor + at -
           token * ratio.divisor;
  }

  __device__ bool is_padding(int row) const { return first_row + row >= rows(); }
};

// Which positions a row sees: from Begin(row) to before End(row).
struct RowLimits {
  uint32_t query_position;
  uint32_t first_row;
  uint32_t last_row;
  Divider ratio;
  uint32_t window;
  // Every row of the tile sees [begin_all, end_all).
  uint32_t begin_all;
  uint32_t end_all;

  static __device__ RowLimits Of(const RowView& view, uint32_t rows_per_tile, uint32_t window) {
    RowLimits limits;
    limits.query_position = view.cell->query_position;
    limits.first_row = view.first_row;
    limits.last_row = view.rows() - 1;
    limits.ratio = view.ratio;
    limits.window = window;
    limits.end_all = limits.End(0);
    limits.begin_all = limits.Begin(static_cast<int>(rows_per_tile) - 1);
    return limits;
  }
  // Padding sees what the last row sees.
  __device__ uint32_t End(int row) const {
    return query_position + ratio.Of(min(first_row + row, last_row)) + 1;
  }
  __device__ uint32_t Begin(int row) const {
    const uint32_t end = End(row);
    return window > 0 && end > window ? end - window : 0;
  }
};

__device__ __forceinline__ float2 UnpackTwo(uint32_t bits, bool is_bf16) {
  if (is_bf16) return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u)};
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
__device__ __forceinline__ float4 UnpackFour(const uint4& bits, DType dtype) {
  if (dtype == DType::kFp32)
    return {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
            __uint_as_float(bits.w)};
  const float2 low = UnpackTwo(bits.x, dtype == DType::kBf16);
  const float2 high = UnpackTwo(bits.y, dtype == DType::kBf16);
  return {low.x, low.y, high.x, high.y};
}

// Distance of two rows in shared memory: lanes 4 g + t reading row t, value g of it meet no bank
// twice.
template <int kHeadDim>
inline constexpr int kRowStride = kHeadDim + 8;

// A tile's queries on their way from device memory to shared memory.
template <int kHeadDim, int kRows>
class QueryLoad {
 public:
  // Asks for them. Lanes of padding ask for the last row's, so that no load is under a condition.
  __device__ __forceinline__ void Begin(const RowView& view, DType dtype, int lane) {
    const std::byte* const q = view.cell->q;
    padding_begin_ = static_cast<int>(view.rows() - view.first_row);
    const auto load = [&](auto four, int bytes) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const size_t at = view.Index(min(RowOf(i, lane), padding_begin_ - 1)) * kHeadDim;
        const auto bits =
            *reinterpret_cast<const decltype(four)*>(q + bytes * (at + ChannelOf(i, lane)));
        bits_[i].x = bits.x;
        bits_[i].y = bits.y;
        if constexpr (sizeof(bits) == sizeof(uint4)) {
          bits_[i].z = bits.z;
          bits_[i].w = bits.w;
        }
      }
    };
    if (dtype == DType::kFp32) {
      load(uint4{}, 4);
    } else {
      load(uint2{}, 2);
    }
  }
  // Asks for the channels of places, for SortByPlace.
  __device__ __forceinline__ void BeginOrder(const uint8_t* order, int lane) {
#pragma unroll
    for (int i = 0; i < kOrders; ++i)
      channels_[i] = *reinterpret_cast<const uchar4*>(order + ChannelOf(i, lane));
  }
  // Waits, and writes them times `scale` to q [kRows][kRowStride], padding as zeros.
  __device__ __forceinline__ void End(float scale, DType dtype, int lane, float* q) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = RowOf(i, lane);
      float4 value = UnpackFour(bits_[i], dtype);
      value = {value.x * scale, value.y * scale, value.z * scale, value.w * scale};
      if (row >= padding_begin_) value = {0, 0, 0, 0};
      *reinterpret_cast<float4*>(q + row * kRowStride<kHeadDim> + ChannelOf(i, lane)) = value;
    }
    __syncwarp();
  }
  // Brings what End wrote from the order of channels to that of places.
  __device__ __forceinline__ void SortByPlace(int lane, float* q) const {
    float4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const float* const row = q + RowOf(i, lane) * kRowStride<kHeadDim>;
      const uchar4 channels = channels_[i % kOrders];
      values[i] = {row[channels.x], row[channels.y], row[channels.z], row[channels.w]};
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float* const row = q + RowOf(i, lane) * kRowStride<kHeadDim>;
      *reinterpret_cast<float4*>(row + ChannelOf(i, lane)) = values[i];
    }
    __syncwarp();
  }

 private:
  static constexpr int kFours = kHeadDim / 4;
  static constexpr int kLoads = kRows * kFours / 32;
  // Loads of a lane that bring different channels.
  static constexpr int kOrders = kFours > 32 ? kFours / 32 : 1;
  // What load i of a lane brings.
  static __device__ __forceinline__ int RowOf(int i, int lane) { return (32 * i + lane) / kFours; }
  static __device__ __forceinline__ int ChannelOf(int i, int lane) {
    return 4 * ((32 * i + lane) % kFours);
  }

  int padding_begin_;  // rows of the tile from here on are padding
  uint4 bits_[kLoads];
  uchar4 channels_[kOrders];
};

// soft_cap tanh(score) to base 2. 1 - 2 / (1 + e^2x) is exact enough: what counts is the absolute
// error of a logit.
__device__ __forceinline__ float Capped(float score, float soft_cap) {
  const float tanh = 1 - __fdividef(2.0f, 1 + exp2f(fminf(2 * kLog2E * score, 126.0f)));
  return soft_cap * kLog2E * tanh;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_ROW_CUH_
