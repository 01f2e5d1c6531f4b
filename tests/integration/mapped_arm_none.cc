// Stands for mapped_arm_cuda.cc where no CUDA toolkit was found: no daemon has a GPU then.
#include "gpu/check.h"
#include "tests/integration/mapped_arm.h"

namespace kvdepot {

std::unique_ptr<MappedArm> MakeCudaArm() {
  KVDEPOT_CHECK(false);
  return nullptr;
}

}  // namespace kvdepot
