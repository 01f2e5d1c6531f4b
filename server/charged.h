// Host memory that a session holds beside its extents, together with its charge: second moments of
// its queries until the first seal, then the calibration made from them.
#ifndef KVDEPOT_SERVER_CHARGED_H_
#define KVDEPOT_SERVER_CHARGED_H_

#include <memory>
#include <vector>

#include "server/memory_budget.h"

namespace kvdepot {

// The value goes before its charge does, as with StoredExtent.
template <typename T>
struct Charged {
  MemoryCharge charge;
  T value;
};

// [kv_head][channel]. Null: unknown.
using QueryMomentsRef = std::shared_ptr<const Charged<std::vector<float>>>;

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CHARGED_H_
