#include "gpu/shared_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

// Linux 5.1; glibc 2.36 has it in a header that its own fcntl.h contradicts.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

absl::Status NoMemory(const char* call, size_t size_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("device_memory: ", call, " of ", size_bytes,
                                                   " shared bytes: ", std::strerror(errno)));
}

absl::StatusOr<std::byte*> MapWhole(const FileDescriptor& file, size_t size_bytes, int protection) {
  void* const data = mmap(nullptr, size_bytes, protection, MAP_SHARED, file.get(), 0);
  if (data != MAP_FAILED) return static_cast<std::byte*>(data);
  if (errno == EPERM || errno == EACCES) {
    return absl::PermissionDeniedError("region: is for reading only");
  }
  return NoMemory("mmap", size_bytes);
}

class SharedMemory final : public SlabMemory {
 public:
  SharedMemory(FileDescriptor file, std::byte* data, size_t size_bytes)
      : SlabMemory(data, size_bytes), file_(std::move(file)) {}
  ~SharedMemory() override { munmap(data(), size_bytes()); }

  absl::StatusOr<IpcRegion> Export() const override {
    FileDescriptor copy(fcntl(file_.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy) {
      return absl::ResourceExhaustedError(absl::StrCat("file_descriptors: ", std::strerror(errno)));
    }
    IpcRegion region;
    region.size_bytes = size_bytes();
    region.descriptor = std::move(copy);
    return region;
  }

 private:
  const FileDescriptor file_;
};

class MappedSharedMemory final : public MappedRegion {
 public:
  MappedSharedMemory(std::byte* data, size_t size_bytes) : MappedRegion(data, size_bytes) {}
  ~MappedSharedMemory() override { munmap(data(), size_bytes()); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<SlabMemory>> MakeSharedMemory(size_t size_bytes, ExtentUse use) {
  FileDescriptor file(memfd_create(use == ExtentUse::kSealed ? "kvdepot-sealed" : "kvdepot-tail",
                                   MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return NoMemory("memfd_create", size_bytes);
  if (ftruncate(file.get(), static_cast<off_t>(size_bytes)) != 0) {
    return NoMemory("ftruncate", size_bytes);
  }
  absl::StatusOr<std::byte*> data = MapWhole(file, size_bytes, PROT_READ | PROT_WRITE);
  if (!data.ok()) return data.status();
  // After this process has its own mapping, which stays writable.
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (use == ExtentUse::kSealed) seals |= F_SEAL_FUTURE_WRITE;
  const bool sealed = fcntl(file.get(), F_ADD_SEALS, seals) == 0;
  auto memory = std::make_unique<SharedMemory>(std::move(file), *data, size_bytes);
  if (!sealed) return NoMemory("F_ADD_SEALS", size_bytes);
  return memory;
}

absl::StatusOr<std::unique_ptr<MappedRegion>> MapSharedMemory(const IpcRegion& region,
                                                              RegionAccess access) {
  struct stat info = {};
  if (fstat(region.descriptor.get(), &info) != 0 ||
      static_cast<size_t>(info.st_size) != region.size_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("region.size_bytes: ", region.size_bytes,
                                                      ", its descriptor has ", info.st_size));
  }
  // A file elsewhere, huge pages included, may have no memory when a page is first touched.
  struct statfs files = {};
  if (fstatfs(region.descriptor.get(), &files) != 0 || files.f_type != TMPFS_MAGIC) {
    return absl::FailedPreconditionError("region: its descriptor is no memfd");
  }
  const int seals = fcntl(region.descriptor.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::FailedPreconditionError("region: its descriptor is none of a slab: it can shrink");
  }
  absl::StatusOr<std::byte*> data =
      MapWhole(region.descriptor, region.size_bytes,
               access == RegionAccess::kRead ? PROT_READ : PROT_READ | PROT_WRITE);
  if (!data.ok()) return data.status();
  return std::make_unique<MappedSharedMemory>(*data, region.size_bytes);
}

}  // namespace kvdepot
