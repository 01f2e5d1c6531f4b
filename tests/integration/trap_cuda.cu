#include "tests/integration/trap.h"

namespace kvdepot {
namespace {

__global__ void TrapKernel() { __trap(); }

}  // namespace

void Trap() {
  TrapKernel<<<1, 1>>>();
  // The error stays behind for whoever calls next.
  (void)cudaDeviceSynchronize();
}

}  // namespace kvdepot
