// What kernels know of one KV head of a `planes` layer: its calibration in a form that device
// memory holds. Plain data, the same on host and device.
#ifndef KVDEPOT_GPU_DEVICE_HEAD_H_
#define KVDEPOT_GPU_DEVICE_HEAD_H_

#include <cstddef>
#include <cstdint>

#include "gpu/calibration.h"
#include "gpu/host_device.h"
#include "gpu/planes/format.h"
#include "gpu/shape.h"

namespace kvdepot {

struct alignas(16) DeviceHead {
  // Entry i is the channel stored at place i; head_dim entries are set.
  uint8_t k_order[kHeadDimMax];
  uint8_t v_order[kHeadDimMax];
  uint32_t record_bytes;
  // Record bytes of all heads before this one: where its part begins.
  uint32_t record_bytes_before;
  // Width of group G in bits 4 G .. 4 G + 3.
  uint32_t k_widths;
  uint32_t v_widths;
  uint8_t k_pattern;
  uint8_t v_pattern;
  uint8_t zero[14];
};
static_assert(sizeof(DeviceHead) == 2 * kHeadDimMax + 32, "whole 16-byte words");

// Byte offset of head `head`'s part, from the segment's first byte.
KVDEPOT_HOST_DEVICE constexpr size_t PlanesPartOffset(size_t header_bytes, int head_dim, int head,
                                                      uint32_t record_bytes_before, int blocks) {
  return header_bytes + 2 * planes::TableBytes(head_dim) * static_cast<size_t>(head) +
         static_cast<size_t>(record_bytes_before) * static_cast<size_t>(blocks);
}

// Fills heads[0 .. shape.kv_heads - 1]. `calibration` fits `shape` (ValidateLayerCalibration).
void FillDeviceHeads(const LayerShape& shape, const LayerCalibration& calibration,
                     DeviceHead* heads);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DEVICE_HEAD_H_
