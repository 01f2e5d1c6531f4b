// Shapes and element types, as the contract (proto/kvdepot/v1/session.proto) defines them.
//
// Everything below gpu/ speaks of these types; nothing here knows sessions, protobuf or gRPC.
#ifndef KVDEPOT_GPU_SHAPE_H_
#define KVDEPOT_GPU_SHAPE_H_

#include <cstddef>
#include <cstdint>

namespace kvdepot {

// Persistent: the numbers are in segment headers. Never renumber.
enum class DType : uint8_t { kBf16 = 1, kFp16 = 2, kFp32 = 3 };
enum class Codec : uint8_t { kRaw = 1, kPlanes = 2, kPackKv = 3 };
inline constexpr Codec kCodecs[] = {Codec::kRaw, Codec::kPlanes, Codec::kPackKv};
inline constexpr int kCodecCount = 3;
// In a table with an entry a codec, in that order.
constexpr size_t CodecIndex(Codec codec) { return static_cast<size_t>(codec) - 1; }

// As messages, metrics and options spell it.
constexpr const char* CodecName(Codec codec) {
  switch (codec) {
    case Codec::kRaw:
      return "raw";
    case Codec::kPlanes:
      return "planes";
    case Codec::kPackKv:
      return "packkv";
  }
  return "";
}

// Operating points of `planes`, in the order in which a calibration lists their patterns.
enum class Profile : uint8_t { kTiny = 0, kCompact = 1, kBalanced = 2, kFine = 3 };
inline constexpr int kProfileCount = 4;

inline constexpr int kBlockTokens = 64;
inline constexpr int kSinkTokens = 16;
inline constexpr int kSegmentTokensMax = 1024;
inline constexpr int kHeadDimMax = 256;
inline constexpr int kQueryHeadsPerKvHeadMax = 16;

constexpr size_t DTypeBytes(DType dtype) { return dtype == DType::kFp32 ? 4 : 2; }

// One attention layer. `soft_cap` 0 and `sliding_window` 0 switch the feature off.
struct LayerShape {
  int kv_heads = 0;
  int query_heads = 0;
  int head_dim = 0;
  float soft_cap = 0;
  int sliding_window = 0;

  constexpr int queries_per_kv_head() const { return query_heads / kv_heads; }
  // Values of K, or of V, in one token.
  constexpr size_t row_values() const {
    return static_cast<size_t>(kv_heads) * static_cast<size_t>(head_dim);
  }

  friend bool operator==(const LayerShape& a, const LayerShape& b) {
    return a.kv_heads == b.kv_heads && a.query_heads == b.query_heads && a.head_dim == b.head_dim &&
           a.soft_cap == b.soft_cap && a.sliding_window == b.sliding_window;
  }
};

// What whoever reads a segment takes for granted of it.
struct SegmentGeometry {
  Codec codec = Codec::kRaw;
  DType dtype = DType::kBf16;
  int kv_heads = 0;
  int head_dim = 0;
  int tokens = 0;
};

// Bytes of an exact extent for `tokens` tokens of one layer: head after head K[tokens][D],
// V[tokens][D].
constexpr size_t ExactExtentBytes(const LayerShape& shape, DType dtype, int tokens) {
  return 2 * shape.row_values() * static_cast<size_t>(tokens) * DTypeBytes(dtype);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SHAPE_H_
