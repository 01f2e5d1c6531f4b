// What kernels know of one mapped session (gpu/mapped_layer.h), in device memory of this process,
// for one CUDA stream. Internal to the client library.
#ifndef KVDEPOT_CLIENT_SESSION_CELLS_H_
#define KVDEPOT_CLIENT_SESSION_CELLS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/mapped_directory.h"
#include "client/staging_pool.h"
#include "gpu/device_memory.h"
#include "gpu/mapped_layer.h"

namespace kvdepot {

// Addresses of layers and flag never change, so that graphs may hold them. Used by one thread.
class SessionCells {
 public:
  // Without tokens until the first Take. Everything is queued on `stream`. RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<SessionCells>> Create(const MappedShape& shape,
                                                              cudaStream_t stream);

  MappedLayer* layers() const { return reinterpret_cast<MappedLayer*>(fixed_.data() + kFlagBytes); }
  MappedFlag* flag() const { return reinterpret_cast<MappedFlag*>(fixed_.data()); }
  size_t layer_count() const { return shape_.layers.size(); }
  // Of the largest record that segments of the layer have or will have; 0: they have none.
  uint32_t record_bytes_max(size_t layer) const { return record_bytes_max_[layer]; }

  // Queues on `stream` what makes kernels see `directory`. `goes_on`: it has the generation of the
  // last one, and tokens that were written behind that stay. What is returned must live until that
  // is done. DATA_LOSS: its room is none of the contract.
  absl::StatusOr<std::shared_ptr<PinnedBuffer>> Take(const MappedDirectory& directory, bool goes_on,
                                                     StagingPool* staging, cudaStream_t stream);

 private:
  static constexpr size_t kFlagBytes = 128;
  static_assert(sizeof(MappedFlag) <= kFlagBytes && kFlagBytes % alignof(MappedLayer) == 0,
                "layers lie behind the flag");

  // Where the lists of a layer lie in lists_, and how long they may get.
  struct Place {
    size_t coded = 0;
    size_t exact = 0;
    size_t heads = 0;
    size_t block_costs = 0;
    size_t coded_max = 0;
    size_t exact_max = 0;
    // What was sent there last.
    std::shared_ptr<const LayerCalibration> calibration;
  };

  // What a directory's layer comes to.
  struct Plan {
    std::vector<TokenRun> runs;  // the room as if it was full
    size_t coded = 0;
    size_t exact = 0;
    MappedLayer next;
  };

  SessionCells(MappedShape shape, DeviceBuffer fixed);

  absl::StatusOr<Plan> PlanOf(const MappedDirectory& directory, size_t layer) const;
  absl::Status Grow(const std::vector<Plan>& plans);
  // Of what Take has the device read.
  size_t UpdateBytes(const std::vector<Plan>& plans) const;

  const MappedShape shape_;
  const DeviceBuffer fixed_;
  std::vector<uint32_t> record_bytes_max_;
  std::vector<Place> places_;
  DeviceBuffer lists_;
  // Kernels that are queued may read these.
  std::vector<DeviceBuffer> outgrown_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_SESSION_CELLS_H_
