#include "gpu/device_head.h"

#include <algorithm>

#include "gpu/planes/pattern.h"

namespace kvdepot {
namespace {

uint32_t PackedWidths(const planes::Pattern& pattern) {
  uint32_t packed = 0;
  for (int group = 0; group < pattern.groups; ++group)
    packed |= static_cast<uint32_t>(pattern.width[group]) << (4 * group);
  return packed;
}

}  // namespace

void FillDeviceHeads(const LayerShape& shape, const LayerCalibration& calibration,
                     DeviceHead* heads) {
  uint32_t before = 0;
  for (int h = 0; h < shape.kv_heads; ++h) {
    const HeadLayout& layout = calibration.heads[static_cast<size_t>(h)];
    DeviceHead& head = heads[h];
    head = DeviceHead{};
    std::copy(layout.k.order.begin(), layout.k.order.end(), head.k_order);
    std::copy(layout.v.order.begin(), layout.v.order.end(), head.v_order);
    const planes::Pattern k_pattern = planes::KeyPattern(shape.head_dim, layout.k.pattern);
    const planes::Pattern v_pattern = planes::ValuePattern(shape.head_dim, layout.v.pattern);
    head.record_bytes = static_cast<uint32_t>(planes::RecordBytes(k_pattern, v_pattern));
    head.k_widths = PackedWidths(k_pattern);
    head.v_widths = PackedWidths(v_pattern);
    head.record_bytes_before = before;
    head.k_pattern = layout.k.pattern;
    head.v_pattern = layout.v.pattern;
    before += head.record_bytes;
  }
}

}  // namespace kvdepot
