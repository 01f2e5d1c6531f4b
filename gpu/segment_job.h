// What the kernels that write segments are told: plain data in device memory.
#ifndef KVDEPOT_GPU_SEGMENT_JOB_H_
#define KVDEPOT_GPU_SEGMENT_JOB_H_

#include <cstddef>
#include <cstdint>

#include "gpu/device_head.h"
#include "gpu/shape.h"

namespace kvdepot {

// One segment to write. Owns nothing.
struct SegmentJob {
  // Device memory: `block_count` (1 to 16) addresses of exact extents of 64 tokens, in order of
  // position, each in device memory and aligned to 128 bytes.
  const std::byte* const* blocks;
  // Device memory: one entry a KV head, as FillDeviceHeads fills them. Null for raw.
  const DeviceHead* heads;
  // Device memory, aligned to 128 bytes; `size_bytes` is SegmentBytes() of the same arguments.
  std::byte* segment;
  uint64_t size_bytes;
  // As in the header: zero for raw.
  uint8_t calibration_hash[16];
  uint32_t block_count;
};

// Segments of one geometry, for instance all layers of a prefill. The counts and maxima are read by
// the host when work is queued; everything else is read when it runs, so a captured graph sees what
// is in device memory then.
struct SegmentBatch {
  int kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kBf16;
  // Device memory.
  const SegmentJob* jobs = nullptr;
  int job_count = 0;  // at most 65,535
  // Not smaller than any job's.
  int block_count_max = 0;
  size_t size_bytes_max = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEGMENT_JOB_H_
