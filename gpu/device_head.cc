#include "gpu/device_head.h"

#include <algorithm>

#include "gpu/planes/pattern.h"

namespace kvdepot {

void FillDeviceHeads(const LayerShape& shape, const LayerCalibration& calibration,
                     DeviceHead* heads) {
  uint32_t before = 0;
  for (int h = 0; h < shape.kv_heads; ++h) {
    const HeadLayout& layout = calibration.heads[static_cast<size_t>(h)];
    DeviceHead& head = heads[h];
    head = DeviceHead{};
    std::copy(layout.k.order.begin(), layout.k.order.end(), head.k_order);
    std::copy(layout.v.order.begin(), layout.v.order.end(), head.v_order);
    head.record_bytes = static_cast<uint32_t>(
        planes::RecordBytes(planes::KeyPattern(shape.head_dim, layout.k.pattern),
                            planes::ValuePattern(shape.head_dim, layout.v.pattern)));
    head.record_bytes_before = before;
    head.k_pattern = layout.k.pattern;
    head.v_pattern = layout.v.pattern;
    before += head.record_bytes;
  }
}

}  // namespace kvdepot
