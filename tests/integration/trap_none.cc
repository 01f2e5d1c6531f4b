#include "tests/integration/trap.h"

namespace kvdepot {

void Trap() {}

}  // namespace kvdepot
