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

// In a warp's shared memory, outputs by place; or spilled to device memory as it lies there.
template <int kHeadDim>
struct SharedState {
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

__device__ __forceinline__ float4 AddScaled(const float4& total, float factor,
                                            const float4& value) {
  return {fmaf(factor, value.x, total.x), fmaf(factor, value.y, total.y),
          fmaf(factor, value.z, total.z), fmaf(factor, value.w, total.w)};
}

// In device memory, dense.
template <int kHeadDim, int kRows>
struct GlobalState {
  static constexpr int kFloats = kRows * (kHeadDim + 2);
  float* base;

  // Other blocks write it: past this multiprocessor's cache.
  __device__ float4 outputs(int row, int place) const {
    return __ldcg(reinterpret_cast<const float4*>(base + row * kHeadDim + place));
  }
  __device__ float2 numbers(int row) const {
    return __ldcg(reinterpret_cast<const float2*>(base + kRows * kHeadDim + 2 * row));
  }
  __device__ void Store(int row, int place, const float4& outputs_there, float reference_there,
                        float sum_there) const {
    *reinterpret_cast<float4*>(base + row * kHeadDim + place) = outputs_there;
    if (place == 0)
      *reinterpret_cast<float2*>(base + kRows * kHeadDim + 2 * row) = {reference_there, sum_there};
  }
};

// What block `block` leaves of a row: of the row that its range begins in, if that began before, or
// of the one that it ends in.
template <int kHeadDim, int kRows>
__device__ __forceinline__ GlobalState<kHeadDim, kRows> RowPart(float* parts, uint32_t block,
                                                                bool from_before) {
  return {parts + (2 * block + (from_before ? 0 : 1)) * GlobalState<kHeadDim, kRows>::kFloats};
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_STATE_CUH_
