// The first bytes of a segment (gpu/FORMAT.md), as they lie in memory; the same on host and device.
#ifndef KVDEPOT_GPU_SEGMENT_HEADER_H_
#define KVDEPOT_GPU_SEGMENT_HEADER_H_

#include <cstddef>
#include <cstdint>

#include "gpu/host_device.h"

namespace kvdepot {

inline constexpr uint16_t kSegmentFormatVersion = 0;
// The checksum is a hash of the hashes of such pieces.
inline constexpr size_t kChecksumPieceBytes = 4096;

// Pattern numbers follow: of K and of V, head after head.
struct SegmentHeader {
  uint8_t magic[4];
  uint16_t version;
  uint8_t codec;
  uint8_t dtype;
  uint32_t tokens;
  uint16_t kv_heads;
  uint16_t head_dim;
  uint64_t size_bytes;
  uint64_t checksum;
  uint8_t calibration_hash[16];
  uint8_t zero[16];
};
static_assert(sizeof(SegmentHeader) == 64, "gpu/FORMAT.md");
static_assert(offsetof(SegmentHeader, size_bytes) == 16 &&
                  offsetof(SegmentHeader, calibration_hash) == 32,
              "gpu/FORMAT.md");

KVDEPOT_HOST_DEVICE constexpr size_t SegmentHeaderBytes(int kv_heads) {
  return (sizeof(SegmentHeader) + 2 * static_cast<size_t>(kv_heads) + 127) / 128 * 128;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEGMENT_HEADER_H_
