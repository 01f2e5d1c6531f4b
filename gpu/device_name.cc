#include "gpu/device_name.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace kvdepot {

bool IsDeviceName(absl::string_view device) {
  if (device == "auto" || device == "cpu" || absl::StartsWith(device, "GPU-")) return true;
  int index = -1;
  return absl::ConsumePrefix(&device, "cuda:") && absl::SimpleAtoi(device, &index) && index >= 0;
}

}  // namespace kvdepot
