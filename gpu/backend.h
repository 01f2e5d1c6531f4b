// Who executes: device memory and everything that is computed on it.
//
// Thread safety: what says so, and the destructors of extents, may be called from any thread. The
// other methods are called by one thread at a time (whoever has the engine's turn). They return
// when their results can be used: in host memory at once, in device memory by later calls.
//
// Errors: arguments that a client can influence (values, sizes, positions) yield a Status;
// pointers, runs and shapes come from the engine, which has checked them, so a violated
// precondition aborts. A device that fails cannot be used again in this process: from then on
// health() says why, and whatever a method left behind since its last OK is undefined.
#ifndef KVDEPOT_GPU_BACKEND_H_
#define KVDEPOT_GPU_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gpu/calibration.h"
#include "gpu/extent.h"
#include "gpu/ipc_region.h"
#include "gpu/memory_space.h"
#include "gpu/packkv/options.h"
#include "gpu/seal_blocks.h"
#include "gpu/shape.h"
#include "gpu/slab_pool.h"
#include "gpu/token_run.h"

namespace kvdepot {

// Tokens of a caller: k and v are [token][kv_head][channel] in the session's dtype, dense.
struct DenseTokens {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  int count = 0;
  MemorySpace space = MemorySpace::kHost;
};

// Attention of one session's query tokens over its visible tokens of one layer.
struct AttendItem {
  LayerShape shape;
  DType dtype = DType::kBf16;
  // Of the session's layer; may be null if no run is a `planes` segment.
  const LayerCalibration* calibration = nullptr;
  // In order of position and without gaps. runs[0] begins at position `first_position`; tokens
  // before it are not visible to any query (they left the sliding window).
  absl::Span<const TokenRun> runs;
  uint64_t first_position = 0;
  // Queries stand at positions query_position .. query_position + query_tokens - 1; each sees
  // tokens up to its own position and not past the end of `runs`.
  uint64_t query_position = 0;
  int query_tokens = 0;
  // Factor on q.k, not 0.
  float scale = 1;
  // [query token][query_head][channel] in the session's dtype, finite.
  const std::byte* q = nullptr;
  MemorySpace q_space = MemorySpace::kHost;
  // [query token][query_head][channel] and [query token][query_head]. Where a query sees no token:
  // 0 and -infinity. Where a logit that it sees overflows fp32: log_sum_exp is not finite, and the
  // output has no meaning.
  float* output = nullptr;
  float* log_sum_exp = nullptr;
  MemorySpace results_space = MemorySpace::kHost;
};

// A layer whose own calibration is wanted, with its first sealed segment.
struct CalibrationJob {
  SealBlocks source;
  Profile profile = Profile::kCompact;
  absl::Span<const float> query_second_moments;  // [kv_head][channel] or empty
};

// One segment to encode.
struct EncodeJob {
  SealBlocks source;
  Codec codec = Codec::kRaw;
  // Of `planes`. Of `packkv` with `normalize` the session's, or null; null for others.
  const LayerCalibration* calibration = nullptr;
  packkv::Options packkv;  // of `packkv`, valid
  // Memory of the device, of SegmentBytes() of the above.
  std::byte* segment = nullptr;
  // Written by Encode. False: the values leave the codec's range (gpu/FORMAT.md); the segment's
  // bytes are then undefined and the caller encodes as raw. Never false for raw.
  bool in_range = true;
  // Written by Encode: of the segment, as its header says, if the values are in range. Of `packkv`
  // at most SegmentBytes(), and the caller may give the rest back; of others exactly that.
  size_t size_bytes = 0;
};

// Exact tokens of one layer that somebody else than the backend has written.
struct WrittenRun {
  LayerShape shape;
  TokenRun run;  // of form kExact
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu" or "cuda".
  virtual std::string name() const = 0;
  // The processor's name or the GPU's UUID.
  virtual std::string device() const = 0;

  // OK, or INTERNAL with the failure that ended the device's use. Any thread.
  virtual absl::Status health() const { return absl::OkStatus(); }

  // Whether layers of that shape can be stored by `codec` and read again, with valid `packkv`
  // options where it is `packkv`: UNIMPLEMENTED naming the codec and the device if not, and then no
  // other method is asked to. Any thread.
  virtual absl::Status Supports(const LayerShape& shape, DType dtype, Codec codec,
                                const packkv::Options& packkv) const = 0;

  // What the device has for sessions, those that it holds included: what a budget in per cent is a
  // part of. Any thread.
  virtual uint64_t memory_bytes() const = 0;
  // How many bytes extents may take; without limit until it is called first. Any thread.
  virtual void SetBudget(uint64_t /*budget_bytes*/) {}
  // Of the slabs that extents are cut from. Any thread.
  virtual SlabUsage slab_usage() const = 0;
  // Extent::place names the slab. Errors as SlabPool::Export. Any thread.
  virtual absl::StatusOr<ExportedSlab> ExportSlab(uint64_t serial) = 0;
  // What another process has shown, as memory of kind kDevice. FAILED_PRECONDITION as MapRegion, or
  // INVALID_ARGUMENT naming the kind if the device has no such memory. Any thread.
  virtual absl::StatusOr<std::unique_ptr<MappedRegion>> MapBuffer(IpcRegion region) = 0;

  // RESOURCE_EXHAUSTED, naming device_memory if the device has no such memory left, or budget_bytes
  // if no slab of this tenant and use has room and the budget none for another. The engine's own
  // ledger is checked before. Any thread.
  virtual absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                           size_t size_bytes) = 0;

  // Index of the first infinity or NaN among `count` values; `count` if there is none.
  virtual size_t FirstNonFinite(const std::byte* values, MemorySpace space, DType dtype,
                                size_t count) = 0;

  // Index of the first of `runs` with a value, of K or V, that is infinite or not a number;
  // runs.size() if there is none.
  virtual size_t FirstNonFiniteRun(DType dtype, absl::Span<const WrittenRun> runs) = 0;

  // Copies tokens [from, from + count) of `tokens` to slots first_slot.. of an exact extent of
  // `capacity` tokens. Those in memory of the device may be read until Synchronize.
  virtual void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens,
                           int from, int count, std::byte* extent, int capacity,
                           int first_slot) = 0;

  // Copies the first `count` slots of one exact extent to another of the same capacity.
  virtual void CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from,
                          std::byte* to, int capacity, int count) = 0;

  // The layers' own calibrations, in their order. They are independent, of any shapes.
  virtual std::vector<LayerCalibration> DeriveCalibrations(
      absl::Span<const CalibrationJob> jobs) = 0;

  // How many bytes of exact tokens one Encode, or one DeriveCalibrations, takes at most, though
  // always one job: as many as gain from being worked on together and still are a short piece of
  // work. Any thread.
  virtual size_t encode_bytes_max() const = 0;
  // Encodes every job. They are independent, of any shapes and codecs.
  virtual void Encode(absl::Span<EncodeJob> jobs) = 0;

  // For each item its attention. Items are independent. RESOURCE_EXHAUSTED, naming device_memory,
  // if the device has no memory to work on a batch of this size.
  virtual absl::Status Attend(absl::Span<const AttendItem> items) = 0;

  // Values of `runs` to memory in `space` as `to`: k and v are [token][kv_head][channel], dense.
  virtual void Decode(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
                      absl::Span<const TokenRun> runs, DType to, MemorySpace space, std::byte* k,
                      std::byte* v) = 0;

  // Returns when device memory is as the calls before have left it for other processes too, and
  // nothing that they were handed is read any more.
  virtual void Synchronize() {}

  // Copies `size_bytes` of device memory to the host, and of host memory to the device.
  virtual void ReadBytes(const std::byte* device, size_t size_bytes, std::byte* host) = 0;
  virtual void WriteBytes(const std::byte* host, size_t size_bytes, std::byte* device) = 0;

  // DATA_LOSS naming what is wrong, unless `size_bytes` (a multiple of 8) are a whole segment of
  // that geometry, with a checksum that matches the bytes, and all that reading it here relies on
  // is in order.
  virtual absl::Status VerifySegment(const std::byte* segment, size_t size_bytes,
                                     const SegmentGeometry& geometry) = 0;
};

// Bytes of a sealed segment, of `packkv` at most. `calibration` is that of `planes`, `packkv` are
// valid options of that codec.
size_t SegmentBytes(const LayerShape& shape, DType dtype, Codec codec,
                    const LayerCalibration* calibration, int tokens,
                    const packkv::Options& packkv = {});

// Whether order and pattern numbers of `calibration` fit `shape`: INVALID_ARGUMENT naming the first
// entry that does not.
absl::Status ValidateLayerCalibration(const LayerShape& shape, const LayerCalibration& calibration);

// A backend on the CPU. `threads` >= 1: how many threads one Attend may use, the caller's included.
// `slab_bytes`: as SlabPool's.
std::unique_ptr<Backend> MakeCpuBackend(int threads, uint64_t slab_bytes = kSlabBytesDefault);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_BACKEND_H_
