// What the NVIDIA driver's files say of the GPUs that this process is shown, without CUDA.
#ifndef KVDEPOT_GPU_NVIDIA_DEVICES_H_
#define KVDEPOT_GPU_NVIDIA_DEVICES_H_

#include <string>
#include <vector>

namespace kvdepot {

struct NvidiaDevice {
  // "GPU-" and five groups of hexadecimal digits.
  std::string uuid;
  // Its node is /dev/nvidia and this number. -1: the driver does not say.
  int minor = -1;
  // Whether it is cut into MIG instances.
  bool mig = false;
};

// In order of their PCI addresses. `root` is "/", or a folder that a test has filled. Empty: there
// is no driver, or it is hidden from this container.
std::vector<NvidiaDevice> ListNvidiaDevices(const std::string& root);

// "PID NAME" of the processes that have /dev/nvidia`minor` open, any GPU's node where `minor` is
// below 0; not this one. Those of other users and outside this PID namespace are not seen.
std::vector<std::string> ProcessesWithDevice(int minor, const std::string& root);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_NVIDIA_DEVICES_H_
