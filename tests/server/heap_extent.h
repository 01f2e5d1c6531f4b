// Extents for tests of the bookkeeping, without a backend.
#ifndef KVDEPOT_TESTS_SERVER_HEAP_EXTENT_H_
#define KVDEPOT_TESTS_SERVER_HEAP_EXTENT_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "server/memory_budget.h"
#include "server/segment.h"

namespace kvdepot {

class HeapExtent final : public Extent {
 public:
  static std::unique_ptr<HeapExtent> Make(size_t size_bytes) {
    return std::unique_ptr<HeapExtent>(new HeapExtent(std::vector<std::byte>(size_bytes)));
  }

 private:
  explicit HeapExtent(std::vector<std::byte> bytes)
      : Extent(bytes.data(), bytes.size()), bytes_(std::move(bytes)) {}
  const std::vector<std::byte> bytes_;
};

inline ExtentRef NewExtent(MemoryBudget& budget, size_t size_bytes) {
  return std::make_shared<StoredExtent>(
      StoredExtent{*budget.Reserve("tenant", size_bytes), HeapExtent::Make(size_bytes)});
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_HEAP_EXTENT_H_
