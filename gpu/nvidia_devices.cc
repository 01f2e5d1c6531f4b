#include "gpu/nvidia_devices.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace kvdepot {
namespace {

namespace fs = std::filesystem;

// Names in a folder, in order. Of what cannot be read: none.
std::vector<std::string> NamesIn(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

NvidiaDevice ReadInformation(const fs::path& path) {
  NvidiaDevice device;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    absl::string_view text = line;
    if (absl::ConsumePrefix(&text, "GPU UUID:")) {
      device.uuid = std::string(absl::StripAsciiWhitespace(text));
    } else if (absl::ConsumePrefix(&text, "Device Minor:") &&
               !absl::SimpleAtoi(text, &device.minor)) {
      device.minor = -1;
    }
  }
  return device;
}

// Whether a descriptor of the process leads to the node of that GPU.
bool HasOpen(const fs::path& process, int minor) {
  for (const std::string& name : NamesIn(process / "fd")) {
    std::error_code error;
    const std::string target = fs::read_symlink(process / "fd" / name, error).string();
    absl::string_view number = target;
    int opened = -1;
    if (absl::ConsumePrefix(&number, "/dev/nvidia") && absl::SimpleAtoi(number, &opened) &&
        (minor < 0 || opened == minor)) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::vector<NvidiaDevice> ListNvidiaDevices(const std::string& root) {
  const fs::path driver = fs::path(root) / "proc/driver/nvidia";
  std::vector<NvidiaDevice> devices;
  for (const std::string& address : NamesIn(driver / "gpus")) {
    NvidiaDevice device = ReadInformation(driver / "gpus" / address / "information");
    if (device.uuid.empty()) continue;
    for (const std::string& name :
         NamesIn(driver / "capabilities" / absl::StrCat("gpu", device.minor) / "mig")) {
      if (absl::string_view(name).substr(0, 2) == "gi") device.mig = true;
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

std::vector<std::string> ProcessesWithDevice(int minor, const std::string& root) {
  const fs::path proc = fs::path(root) / "proc";
  std::vector<std::string> processes;
  for (const std::string& name : NamesIn(proc)) {
    int pid = 0;
    if (!absl::SimpleAtoi(name, &pid) || pid == getpid() || !HasOpen(proc / name, minor)) continue;
    std::string command;
    std::ifstream file(proc / name / "comm");
    std::getline(file, command);
    processes.push_back(absl::StrCat(name, " ", command));
  }
  return processes;
}

}  // namespace kvdepot
