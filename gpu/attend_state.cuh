// The state of a row's attention over some tokens: of each query row `reference`, `sum` = sum of
// 2^(y - reference) over its logits y to base 2, and `output` = the same sum of values. Of no
// tokens: kNoReference, 0 and 0.
#ifndef KVDEPOT_GPU_ATTEND_STATE_CUH_
#define KVDEPOT_GPU_ATTEND_STATE_CUH_

#include "gpu/attend_row.cuh"

namespace kvdepot {

// Far below every logit; differences of it stay finite.
inline constexpr float kNoReference = -1e30f;
// A logit of an exact token may exceed its reference by so much before that is raised.
inline constexpr float kHeadroomLog2 = 8.0f;

// In a warp's shared memory, or in device memory for others to merge. Outputs by place.
template <int kHeadDim>
struct RowState {
  float* base;

  static constexpr __host__ __device__ uint32_t Floats(int rows) {
    return rows * kRowStride<kHeadDim>;
  }
  __device__ float4 outputs(int row, int place) const {
    return *reinterpret_cast<const float4*>(base + row * kRowStride<kHeadDim> + place);
  }
  // Beside the values of a row lie, in the padding of its stride, its reference and sum.
  __device__ float& output(int row, int place) const {
    return base[row * kRowStride<kHeadDim> + place];
  }
  __device__ float2 numbers(int row) const { return {reference(row), sum(row)}; }
  __device__ float& reference(int row) const { return base[row * kRowStride<kHeadDim> + kHeadDim]; }
  __device__ float& sum(int row) const { return base[row * kRowStride<kHeadDim> + kHeadDim + 1]; }
  __device__ void Clear(int rows, int lane) const {
    for (int i = lane; i < Floats(rows); i += 32) base[i] = 0;
    __syncwarp();
    if (lane < rows) reference(lane) = kNoReference;
    __syncwarp();
  }
};

// Adds `other`, whose outputs lie by channel, to `state`: place p is channel order[p], or p. Few
// instructions, as they are executed once: most of its time would go into fetching them.
template <int kHeadDim>
__device__ __forceinline__ void AddByChannel(const RowState<kHeadDim>& other, const uint8_t* order,
                                             int rows, int lane, const RowState<kHeadDim>& state) {
  constexpr int kPlaces = kHeadDim / 32;  // of a lane
  int channels[kPlaces];
#pragma unroll
  for (int i = 0; i < kPlaces; ++i)
    channels[i] = order != nullptr ? order[32 * i + lane] : 32 * i + lane;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const float2 before = state.numbers(row);
    const float2 added = other.numbers(row);
    const float reference = fmaxf(before.x, added.x);
    const float old_factor = ptx::Exp2(before.x - reference);
    const float new_factor = ptx::Exp2(added.x - reference);
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      float& output = state.output(row, 32 * i + lane);
      output = output * old_factor + other.output(row, channels[i]) * new_factor;
    }
    __syncwarp();
    if (lane == 0) {
      state.reference(row) = reference;
      state.sum(row) = before.y * old_factor + added.y * new_factor;
    }
  }
  __syncwarp();
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_STATE_CUH_
