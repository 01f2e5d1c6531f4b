// Over a folder that stands for the machine's root.
#include "gpu/nvidia_devices.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace kvdepot {
namespace {

namespace fs = std::filesystem;

class NvidiaDevicesTest : public testing::Test {
 protected:
  NvidiaDevicesTest() : root_(fs::path(testing::TempDir()) / "root") { fs::remove_all(root_); }
  ~NvidiaDevicesTest() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  void AddDevice(const std::string& address, const std::string& uuid, int minor) {
    Write("proc/driver/nvidia/gpus/" + address + "/information",
          "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t " + uuid +
              "\nBus Location: \t " + address + "\nDevice Minor: \t " + std::to_string(minor) +
              "\nGPU Excluded:\t No\n");
  }
  void AddProcess(const std::string& pid, const std::string& name,
                  const std::vector<std::string>& open) {
    Write("proc/" + pid + "/comm", name + "\n");
    fs::create_directories(root_ / "proc" / pid / "fd");
    for (size_t i = 0; i < open.size(); ++i) {
      fs::create_symlink(open[i], root_ / "proc" / pid / "fd" / std::to_string(i));
    }
  }

  const fs::path root_;
};

TEST_F(NvidiaDevicesTest, WithoutADriverThereAreNone) {
  EXPECT_TRUE(ListNvidiaDevices(root_.string()).empty());
  EXPECT_TRUE(ProcessesWithDevice(-1, root_.string()).empty());
}

TEST_F(NvidiaDevicesTest, ListsUuidNodeAndMig) {
  AddDevice("0000:41:00.0", "GPU-b", 1);
  AddDevice("0000:01:00.0", "GPU-a", 0);
  Write("proc/driver/nvidia/capabilities/gpu0/mig/access", "");
  Write("proc/driver/nvidia/capabilities/gpu1/mig/gi9/access", "");
  Write("proc/driver/nvidia/gpus/0000:81:00.0/information", "Model: unknown\n");
  const std::vector<NvidiaDevice> devices = ListNvidiaDevices(root_.string());
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_EQ(devices[0].uuid, "GPU-a");
  EXPECT_EQ(devices[0].minor, 0);
  // MIG could be, but no instance is.
  EXPECT_FALSE(devices[0].mig);
  EXPECT_EQ(devices[1].uuid, "GPU-b");
  EXPECT_EQ(devices[1].minor, 1);
  EXPECT_TRUE(devices[1].mig);
}

TEST_F(NvidiaDevicesTest, NamesTheProcessesThatHaveADeviceOpen) {
  AddProcess("20", "python3", {"/dev/null", "/dev/nvidia1"});
  AddProcess("21", "bash", {"/dev/pts/0"});
  AddProcess("22", "nvidia-smi", {"/dev/nvidiactl", "/dev/nvidia-uvm"});
  AddProcess("23", "trainer", {"/dev/nvidia10"});
  AddProcess(std::to_string(getpid()), "this", {"/dev/nvidia1"});
  AddProcess("irq", "no process", {"/dev/nvidia1"});
  EXPECT_EQ(ProcessesWithDevice(1, root_.string()), std::vector<std::string>{"20 python3"});
  EXPECT_EQ(ProcessesWithDevice(-1, root_.string()),
            (std::vector<std::string>{"20 python3", "23 trainer"}));
}

}  // namespace
}  // namespace kvdepot
