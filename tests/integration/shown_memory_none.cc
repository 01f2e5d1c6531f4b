// Stands for shown_memory_cuda.cc where no CUDA toolkit was found: no daemon has a GPU then.
#include "gpu/check.h"
#include "tests/integration/shown_memory.h"

namespace kvdepot {

std::unique_ptr<ShownMemory> MakeCudaMemory(const std::shared_ptr<Lease>& /*lease*/,
                                            size_t /*size_bytes*/) {
  KVDEPOT_CHECK(false);
  return nullptr;
}

}  // namespace kvdepot
