#include "gpu/slab_pool.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot {
namespace {

constexpr uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

struct SlabPool::Slab {
  uint64_t serial = 0;
  Group* group = nullptr;
  std::unique_ptr<SlabMemory> memory;
  int holds = 0;
  // Offset -> size; no two of them touch.
  std::map<size_t, size_t> free;

  void Insert(size_t offset, size_t size) {
    free.emplace(offset, size);
    group->emplace(size, serial, offset);
  }
  void Erase(std::map<size_t, size_t>::iterator range) {
    group->erase({range->second, serial, range->first});
    free.erase(range);
  }
  bool is_empty() const {
    return holds == 0 && free.size() == 1 && free.begin()->second == memory->size_bytes();
  }
};

class SlabPool::SlabExtent final : public Extent {
 public:
  SlabExtent(SlabPool* pool, Slab* slab, size_t offset, size_t size_bytes)
      : Extent(slab->memory->data() + offset, size_bytes, {slab->serial, offset}),
        pool_(pool),
        slab_(slab) {}
  ~SlabExtent() override { pool_->Free(slab_, place().offset, size_bytes()); }

 private:
  void GiveBackBehind(size_t size_bytes) override {
    pool_->Shrink(slab_, place().offset, this->size_bytes(), size_bytes);
  }

  SlabPool* const pool_;
  Slab* const slab_;
};

class SlabPool::Hold final : public SlabHold {
 public:
  Hold(SlabPool* pool, Slab* slab) : pool_(pool), slab_(slab) {}
  ~Hold() override { pool_->EndHold(slab_); }

 private:
  SlabPool* const pool_;
  Slab* const slab_;
};

uint64_t NewSlabBytes(uint64_t slab_bytes, uint64_t budget_bytes, uint64_t size_bytes) {
  const uint64_t part = budget_bytes / 8 / kSlabGranularityBytes * kSlabGranularityBytes;
  const uint64_t usual = std::max(kSlabGranularityBytes, std::min(slab_bytes, part));
  return RoundUp(std::max(usual, ExtentBytes(size_bytes)), kSlabGranularityBytes);
}

absl::StatusOr<IpcRegion> SlabMemory::Export() const {
  return absl::UnimplementedError("mapping: this backend's memory cannot be mapped elsewhere");
}

SlabPool::SlabPool(SlabSource source, uint64_t slab_bytes, uint64_t budget_bytes)
    : source_(std::move(source)), slab_bytes_(slab_bytes), budget_bytes_(budget_bytes) {
  KVDEPOT_CHECK(slab_bytes > 0 && slab_bytes % kSlabGranularityBytes == 0);
}

SlabPool::~SlabPool() { KVDEPOT_CHECK(slabs_.size() == (spare_ == nullptr ? 0u : 1u)); }

absl::StatusOr<std::unique_ptr<Extent>> SlabPool::Allocate(const std::string& tenant, ExtentUse use,
                                                           size_t size_bytes) {
  KVDEPOT_CHECK(size_bytes > 0);
  const size_t rounded = ExtentBytes(size_bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  Group& group = groups_[{tenant, use}];
  auto fit = group.lower_bound({rounded, 0, 0});
  if (fit == group.end()) {
    const uint64_t needed = NewSlabBytes(slab_bytes_, budget_bytes_, size_bytes);
    // Gone before the new one is asked for: the device may have room for one of them only.
    if (spare_ != nullptr && usage_.slab_bytes + needed > budget_bytes_) TakeSlab(spare_).reset();
    const absl::StatusOr<Slab*> slab = MakeSlab(&group, use, needed);
    if (!slab.ok()) return slab.status();
    fit = group.lower_bound({rounded, 0, 0});
  }
  const auto [range_bytes, serial, offset] = *fit;
  Slab* const slab = slabs_.at(serial).get();
  if (slab == spare_) spare_ = nullptr;
  slab->Erase(slab->free.find(offset));
  if (range_bytes > rounded) slab->Insert(offset + rounded, range_bytes - rounded);
  usage_.unused_bytes -= size_bytes;
  return std::make_unique<SlabExtent>(this, slab, offset, size_bytes);
}

absl::StatusOr<SlabPool::Slab*> SlabPool::MakeSlab(Group* group, ExtentUse use, size_t size_bytes) {
  if (size_bytes > budget_bytes_ || usage_.slab_bytes > budget_bytes_ - size_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("budget_bytes: ", usage_.slab_bytes, " in slabs of ", budget_bytes_,
                     ", a slab of ", size_bytes,
                     " more needed; slabs of other tenants and uses "
                     "have ",
                     usage_.unused_bytes, " unused"));
  }
  absl::StatusOr<std::unique_ptr<SlabMemory>> memory = source_(size_bytes, use);
  if (!memory.ok()) return memory.status();
  auto slab = std::make_unique<Slab>();
  slab->serial = next_serial_++;
  slab->group = group;
  slab->memory = *std::move(memory);
  slab->Insert(0, size_bytes);
  usage_.slab_bytes += size_bytes;
  usage_.unused_bytes += size_bytes;
  Slab* const made = slab.get();
  slabs_.emplace(made->serial, std::move(slab));
  return made;
}

std::unique_ptr<SlabPool::Slab> SlabPool::TakeSlab(Slab* slab) {
  const size_t size_bytes = slab->memory->size_bytes();
  slab->Erase(slab->free.begin());
  usage_.slab_bytes -= size_bytes;
  usage_.unused_bytes -= size_bytes;
  if (slab == spare_) spare_ = nullptr;
  const auto found = slabs_.find(slab->serial);
  std::unique_ptr<Slab> taken = std::move(found->second);
  slabs_.erase(found);
  return taken;
}

void SlabPool::Join(Slab* slab, size_t begin, size_t end) {
  const auto next = slab->free.lower_bound(begin);
  if (next != slab->free.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == begin) {
      begin = previous->first;
      slab->Erase(previous);
    }
  }
  if (next != slab->free.end() && next->first == end) {
    end = next->first + next->second;
    slab->Erase(next);
  }
  slab->Insert(begin, end - begin);
}

void SlabPool::Free(Slab* slab, size_t offset, size_t size_bytes) {
  std::unique_ptr<Slab> released;
  const std::lock_guard<std::mutex> lock(mutex_);
  usage_.unused_bytes += size_bytes;
  Join(slab, offset, offset + ExtentBytes(size_bytes));
  if (slab->is_empty()) released = Retire(slab);
}

void SlabPool::Shrink(Slab* slab, size_t offset, size_t from_bytes, size_t to_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  usage_.unused_bytes += from_bytes - to_bytes;
  const size_t begin = offset + ExtentBytes(to_bytes);
  const size_t end = offset + ExtentBytes(from_bytes);
  if (begin < end) Join(slab, begin, end);
}

std::unique_ptr<SlabPool::Slab> SlabPool::Retire(Slab* slab) {
  if (spare_ != nullptr || usage_.slab_bytes > budget_bytes_) return TakeSlab(slab);
  spare_ = slab;
  return nullptr;
}

absl::StatusOr<ExportedSlab> SlabPool::Export(uint64_t serial) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = slabs_.find(serial);
  if (found == slabs_.end()) {
    return absl::NotFoundError(absl::StrCat("slab: ", serial, ", is not there any more"));
  }
  Slab* const slab = found->second.get();
  absl::StatusOr<IpcRegion> region = slab->memory->Export();
  if (!region.ok()) return region.status();
  ++slab->holds;
  if (slab == spare_) spare_ = nullptr;
  return ExportedSlab{*std::move(region), std::make_unique<Hold>(this, slab)};
}

void SlabPool::EndHold(Slab* slab) {
  std::unique_ptr<Slab> released;
  const std::lock_guard<std::mutex> lock(mutex_);
  --slab->holds;
  if (slab->is_empty()) released = Retire(slab);
}

void SlabPool::SetBudget(uint64_t budget_bytes) {
  std::unique_ptr<Slab> released;
  const std::lock_guard<std::mutex> lock(mutex_);
  budget_bytes_ = budget_bytes;
  if (spare_ != nullptr && usage_.slab_bytes > budget_bytes_) released = TakeSlab(spare_);
}

SlabUsage SlabPool::usage() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

}  // namespace kvdepot
