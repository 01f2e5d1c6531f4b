// The first bytes of a segment (gpu/FORMAT.md), as they lie in memory; the same on host and device.
#ifndef KVDEPOT_GPU_SEGMENT_HEADER_H_
#define KVDEPOT_GPU_SEGMENT_HEADER_H_

#include <cstddef>
#include <cstdint>

#include "gpu/host_device.h"
#include "gpu/shape.h"

namespace kvdepot {

// What is written, and the only version that is read.
inline constexpr uint16_t kSegmentFormatVersion = 1;
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

// With a zero checksum. `calibration_hash`: 16 bytes, for raw zeros.
KVDEPOT_HOST_DEVICE inline SegmentHeader MakeSegmentHeader(Codec codec, DType dtype,
                                                           uint32_t tokens, int kv_heads,
                                                           int head_dim, uint64_t size_bytes,
                                                           const uint8_t* calibration_hash) {
  SegmentHeader header{};
  header.magic[0] = 'K';
  header.magic[1] = 'V';
  header.magic[2] = 'D';
  header.magic[3] = 'S';
  header.version = kSegmentFormatVersion;
  header.codec = static_cast<uint8_t>(codec);
  header.dtype = static_cast<uint8_t>(dtype);
  header.tokens = tokens;
  header.kv_heads = static_cast<uint16_t>(kv_heads);
  header.head_dim = static_cast<uint16_t>(head_dim);
  header.size_bytes = size_bytes;
  for (int i = 0; i < 16; ++i) header.calibration_hash[i] = calibration_hash[i];
  return header;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEGMENT_HEADER_H_
