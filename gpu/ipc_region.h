// A slab as other processes map it: what travels to them, and what they have of it.
//
//   daemon   SlabMemory::Export() -> IpcRegion ---- over the lease's socket, or in a reply ----+
//   client   MapRegion(IpcRegion, access) -> MappedRegion <------------------------------------+
//
// A region is mapped whole, and stays readable for as long as it is mapped, whatever becomes of the
// process that made it. Reuse of its bytes is not this file's matter (server/ARCHITECTURE.md).
#ifndef KVDEPOT_GPU_IPC_REGION_H_
#define KVDEPOT_GPU_IPC_REGION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {

// The numbers are on the wire (proto/kvdepot/v1/mapping.proto). Never renumber.
enum class RegionKind : uint8_t {
  kSharedMemory = 1,  // host memory; its descriptor is a memfd
  kCudaMemory = 2,    // of a GPU; its descriptor is the driver's for virtual memory management
  kCudaIpc = 3,       // of a GPU; a handle of cudaIpcGetMemHandle in place of a descriptor
};

struct IpcRegion {
  RegionKind kind = RegionKind::kSharedMemory;
  // UUID of the GPU that it lies on; empty for host memory.
  std::string device;
  size_t size_bytes = 0;
  // A duplicate of the slab's own. Whoever receives it maps the region without a further right.
  FileDescriptor descriptor;
  // The 64 bytes of kCudaIpc, which are as good as a descriptor to any process of this machine.
  std::string handle;
};

enum class RegionAccess { kRead, kReadWrite };

// A region in this process, from a descriptor that another one sent. Unmapped when destroyed.
class MappedRegion {
 public:
  virtual ~MappedRegion() = default;
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  // In this process, an address of the memory that it is of; 4096-byte aligned at least.
  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 protected:
  MappedRegion(std::byte* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}

 private:
  std::byte* const data_;
  const size_t size_bytes_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_IPC_REGION_H_
