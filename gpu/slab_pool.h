// Device memory in slabs: large equal pieces, made on demand up to a budget and cut into extents.
//
//   budget  |slab|slab|slab|            |      slabs are made when no range of the group's fits
//            a    a    b                       group = (tenant, use); a slab never changes its
//            group |ex|ex|..|ex|                     extents: 256-byte aligned, best fit,
//            neighbours join
//
// Bookkeeping only: where slabs come from is the source's matter, and no byte is touched. A slab
// whose last extent and last hold go is given back to the source, but for one in the pool, so that
// a session that comes and goes does not make one each time; that one goes as soon as the budget is
// short.
//
// A slab that another process maps is *held* for it: while held it stays in the pool, empty or not,
// and serves its own group alone. So memory that a process may still see never becomes another
// tenant's, and counts against the budget for as long.
//
// Thread-safe. The source is called, and slabs are destroyed, from the thread that allocates or
// frees.
#ifndef KVDEPOT_GPU_SLAB_POOL_H_
#define KVDEPOT_GPU_SLAB_POOL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "absl/status/statusor.h"
#include "gpu/extent.h"
#include "gpu/ipc_region.h"

namespace kvdepot {

// What a slab's size is a multiple of: the unit in which devices map memory.
inline constexpr uint64_t kSlabGranularityBytes = uint64_t{2} << 20;
// A session of 8 heads of 128 in bf16 fills it with 128 Ki tokens of one layer.
inline constexpr uint64_t kSlabBytesDefault = uint64_t{64} << 20;

// What vector loads and bulk copies of the device like, and what cudaMalloc gives.
inline constexpr uint64_t kExtentAlignment = 256;

// What is asked for, in the pieces in which a slab is cut.
constexpr uint64_t ExtentBytes(uint64_t size_bytes) {
  return (size_bytes + kExtentAlignment - 1) / kExtentAlignment * kExtentAlignment;
}
// Size of the slab that is made where an extent of `size_bytes` finds no room in those there are;
// `slab_bytes` and `budget_bytes` as of a SlabPool.
uint64_t NewSlabBytes(uint64_t slab_bytes, uint64_t budget_bytes, uint64_t size_bytes);

// The memory of one slab.
class SlabMemory : public Extent {
 public:
  // How another process maps it. UNIMPLEMENTED where it cannot be mapped elsewhere.
  virtual absl::StatusOr<IpcRegion> Export() const;

 protected:
  using Extent::Extent;
};

// Makes a slab of that many bytes for that use. Whatever an earlier owner left in it is gone.
using SlabSource =
    std::function<absl::StatusOr<std::unique_ptr<SlabMemory>>(size_t size_bytes, ExtentUse use)>;

struct SlabUsage {
  uint64_t slab_bytes = 0;
  // Of those, bytes that no extent uses, whatever the reason: room, gaps, rounding.
  uint64_t unused_bytes = 0;
};

// Keeps one slab in its pool for a process that maps it. Ends before the pool does.
class SlabHold {
 public:
  virtual ~SlabHold() = default;
};

// A slab on its way to another process.
struct ExportedSlab {
  IpcRegion region;
  std::unique_ptr<SlabHold> hold;
};

class SlabPool {
 public:
  // `slab_bytes` is a positive multiple of kSlabGranularityBytes. Where it is more than an eighth
  // of the budget, slabs have that much, rounded down, so that a few tenants find room.
  SlabPool(SlabSource source, uint64_t slab_bytes, uint64_t budget_bytes);
  // Every extent and every hold is gone by then.
  ~SlabPool();
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  // An extent that is larger than a slab gets a slab of its own. RESOURCE_EXHAUSTED naming
  // budget_bytes, or the source's error.
  absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                   size_t size_bytes);

  // NOT_FOUND if there is no slab of that number any more, or errors of SlabMemory::Export.
  absl::StatusOr<ExportedSlab> Export(uint64_t serial);

  // Slabs in use beyond a smaller budget stay until they are empty; no new one is made meanwhile.
  void SetBudget(uint64_t budget_bytes);

  SlabUsage usage() const;

 private:
  class SlabExtent;
  class Hold;
  struct Slab;
  // (size, slab's serial number, offset): the smallest that fits comes first, of those the oldest
  // slab's, so that young slabs become empty.
  using FreeRange = std::tuple<size_t, uint64_t, size_t>;
  using Group = std::set<FreeRange>;
  using GroupKey = std::pair<std::string, ExtentUse>;
  using Slabs = std::map<uint64_t, std::unique_ptr<Slab>>;

  // All require mutex_.
  absl::StatusOr<Slab*> MakeSlab(Group* group, ExtentUse use, size_t size_bytes);
  // Keeps an empty slab as the spare one, or returns it to be destroyed.
  std::unique_ptr<Slab> Retire(Slab* slab);
  std::unique_ptr<Slab> TakeSlab(Slab* slab);
  // Of free neighbours and [begin, end), both multiples of the alignment, makes one free range.
  static void Join(Slab* slab, size_t begin, size_t end);

  void Free(Slab* slab, size_t offset, size_t size_bytes);
  void Shrink(Slab* slab, size_t offset, size_t from_bytes, size_t to_bytes);
  void EndHold(Slab* slab);

  const SlabSource source_;
  const uint64_t slab_bytes_;

  mutable std::mutex mutex_;
  // All below are guarded by mutex_. Groups are never erased: slabs point at them, and the daemon's
  // token file bounds the tenants.
  std::map<GroupKey, Group> groups_;
  Slabs slabs_;
  Slab* spare_ = nullptr;  // the one slab without an extent or a hold
  uint64_t next_serial_ = 1;
  uint64_t budget_bytes_;
  SlabUsage usage_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SLAB_POOL_H_
