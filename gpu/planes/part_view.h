// One head's part of a `planes` segment: its tables and records. Owns nothing.
#ifndef KVDEPOT_GPU_PLANES_PART_VIEW_H_
#define KVDEPOT_GPU_PLANES_PART_VIEW_H_

#include <cstddef>
#include <cstdint>

#include "gpu/planes/format.h"
#include "gpu/planes/pattern.h"

namespace kvdepot::planes {

// K or V of the part.
struct TensorView {
  Pattern pattern;
  bool is_key = true;
  const uint16_t* table = nullptr;     // fp16 bits
  const std::byte* records = nullptr;  // token scales and K planes lie at fixed offsets inside each
  size_t record_bytes = 0;
  size_t planes_offset = 0;  // of this tensor's first group inside a record

  const std::byte* record(int block) const {
    return records + static_cast<size_t>(block) * record_bytes;
  }
  const std::byte* planes(int block) const { return record(block) + planes_offset; }

  int head_dim() const { return pattern.groups * kGroupChannels; }
  int table_index(int place) const {
    return is_key ? KTableIndex(head_dim(), place) : VTableIndex(head_dim(), place);
  }
  uint16_t stored_scale(int place) const { return table[table_index(place)]; }
  uint16_t centre(int place) const {
    return table[table_index(place) + CentreDistance(head_dim())];
  }
  uint8_t token_scale_code(int block, int token) const {
    return static_cast<uint8_t>(
        record(block)[is_key ? KTokenScaleIndex(token) : VTokenScaleIndex(token)]);
  }
};

struct PartView {
  TensorView k;
  TensorView v;

  // `part` is the first byte of the part, 2-byte aligned.
  static PartView Of(const std::byte* part, const Pattern& k_pattern, const Pattern& v_pattern) {
    const size_t table_bytes = TableBytes(k_pattern.groups * kGroupChannels);
    const size_t record_bytes = RecordBytes(k_pattern, v_pattern);
    PartView view;
    view.k = {k_pattern,
              true,
              reinterpret_cast<const uint16_t*>(part),
              part + 2 * table_bytes,
              record_bytes,
              kTokenScaleBytes};
    view.v = {v_pattern,
              false,
              reinterpret_cast<const uint16_t*>(part + table_bytes),
              part + 2 * table_bytes,
              record_bytes,
              kTokenScaleBytes + GroupBytes(k_pattern.total())};
    return view;
  }
};

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_PART_VIEW_H_
