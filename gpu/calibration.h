// What is known of a model before its first token is compressed, in the form that codecs use.
//
// The wire and file form is proto/kvdepot/v1/calibration.proto; the server converts. Plain data,
// immutable once made, shared between sessions.
#ifndef KVDEPOT_GPU_CALIBRATION_H_
#define KVDEPOT_GPU_CALIBRATION_H_

#include <array>
#include <cstdint>
#include <vector>

#include "gpu/shape.h"

namespace kvdepot {

// K or V of one head: entry i of `order` is the channel stored at place i; `pattern` numbers its
// group widths (gpu/planes/pattern.h).
struct TensorLayout {
  std::vector<uint8_t> order;
  uint8_t pattern = 0;
};

struct HeadLayout {
  TensorLayout k;
  TensorLayout v;
};

// One layer at one profile: what `planes` needs to encode, size, decode and attend, and what
// `packkv` takes to encode if it normalises.
struct LayerCalibration {
  // First 16 bytes of the calibration's hash; segments carry it.
  std::array<uint8_t, 16> hash_prefix{};
  // One entry a KV head.
  std::vector<HeadLayout> heads;
  // [kv_head][channel] or empty: how much an error in a channel of K costs, the mean of q^2. Of
  // `packkv` alone; 0 for all channels of a head where it is not known.
  std::vector<float> k_channel_weights;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_CALIBRATION_H_
