// What a calibration is charged for.
#ifndef KVDEPOT_GPU_CALIBRATION_BYTES_H_
#define KVDEPOT_GPU_CALIBRATION_BYTES_H_

#include <cstddef>
#include <cstdint>

#include "gpu/calibration.h"

namespace kvdepot {

// Memory of one LayerCalibration: a channel order for K and one for V of each head.
constexpr uint64_t CalibrationBytes(size_t heads, size_t head_dim) {
  return sizeof(LayerCalibration) + heads * (sizeof(HeadLayout) + 2 * head_dim);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_CALIBRATION_BYTES_H_
