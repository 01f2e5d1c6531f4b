// What may stand after --device.
#ifndef KVDEPOT_GPU_DEVICE_NAME_H_
#define KVDEPOT_GPU_DEVICE_NAME_H_

#include "absl/strings/string_view.h"

namespace kvdepot {

// For messages.
inline constexpr absl::string_view kDeviceNames = "auto, cpu, cuda:N or a GPU's UUID";

// Whether `device` is one of those. That there is such a device is another matter.
bool IsDeviceName(absl::string_view device);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DEVICE_NAME_H_
