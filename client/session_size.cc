#include "client/session_size.h"

#include <algorithm>
#include <deque>

#include "gpu/backend.h"
#include "gpu/calibration_bytes.h"
#include "gpu/planes/own_calibration.h"
#include "gpu/seal_rule.h"
#include "gpu/slab_pool.h"
#include "gpu/sliding_window.h"

namespace kvdepot {
namespace {

// Which tokens of a layer lie where, as server/layer.h has it, once what is due is sealed.
class LayerExtents {
 public:
  explicit LayerExtents(const LayerShape& shape) : shape_(shape) {}

  // `tokens` more in one addition.
  void Add(uint64_t tokens) {
    if (tokens == 0) return;
    const uint64_t position = token_count_;
    if (position == 0) has_sinks_ = true;
    token_count_ += tokens;
    const DecidedSegments decided = DecideAtEnd(SealRule(), tail_tokens(), tokens);
    for (const int count : decided) {
      tail_position_ += static_cast<uint64_t>(count);
      segments_.push_back({tail_position_, count});
    }
    // The oldest query that may still come is the addition's first one's predecessor.
    if (position > 0) DropBefore(FirstVisible(shape_, position - 1));
    if (!decided.empty() && !segments_.empty()) has_calibration_ = true;
  }

  // Tokens of each segment.
  std::vector<int> segments() const {
    std::vector<int> counts;
    for (const Segment& segment : segments_) counts.push_back(segment.tokens);
    return counts;
  }
  bool has_sinks() const { return has_sinks_; }
  uint64_t tail_blocks() const { return (tail_tokens() + kBlockTokens - 1) / kBlockTokens; }
  // Whether something was sealed, which makes a calibration.
  bool has_calibration() const { return has_calibration_; }
  uint64_t held_tokens() const {
    if (has_sinks_) return token_count_;
    const uint64_t first =
        segments_.empty() ? tail_position_
                          : segments_.front().end - static_cast<uint64_t>(segments_.front().tokens);
    return token_count_ - first;
  }

 private:
  struct Segment {
    uint64_t end = 0;
    int tokens = 0;
  };

  uint64_t tail_tokens() const {
    return token_count_ > tail_position_ ? token_count_ - tail_position_ : 0;
  }

  // Extents go as a whole, the oldest first.
  void DropBefore(uint64_t visible) {
    if (visible >= kSinkTokens) has_sinks_ = false;
    while (!segments_.empty() && segments_.front().end <= visible) segments_.pop_front();
    while (!has_sinks_ && segments_.empty() && tail_tokens() > 0 &&
           tail_position_ + kBlockTokens <= visible) {
      tail_position_ += kBlockTokens;
    }
  }

  const LayerShape shape_;
  bool has_sinks_ = false;
  bool has_calibration_ = false;
  uint64_t token_count_ = 0;
  uint64_t tail_position_ = kSinkTokens;
  std::deque<Segment> segments_;
};

// Patterns as a session's own calibration has them; which channel is where takes no bytes.
LayerCalibration CalibrationFor(const LayerShape& shape, Profile profile) {
  const std::vector<float> variance(2 * shape.row_values());
  return planes::CalibrationOf(shape, profile, variance, {});
}

uint64_t RowBytes(const LayerShape& shape, DType dtype) {
  return ExactExtentBytes(shape, dtype, 1);
}

// Adds `layers` extents of that size.
void AddExtents(uint64_t layers, uint64_t size_bytes, ExtentCounts* extents, SessionSize* size) {
  if (layers == 0) return;
  size->stored_bytes += layers * size_bytes;
  (*extents)[ExtentBytes(size_bytes)] += layers;
}

void AddGroup(const LayerGroup& group, DType dtype, const TokenHistory& history,
              const StorageChoice& choice, SessionSize* size) {
  LayerExtents tokens(group.shape);
  tokens.Add(history.prompt_tokens);
  for (uint64_t i = 0; i < history.decoded_tokens; ++i) tokens.Add(1);

  const LayerCalibration calibration = CalibrationFor(group.shape, choice.profile);
  const auto segment_bytes = [&](int count) {
    return SegmentBytes(group.shape, dtype, choice.codec, &calibration, count, choice.packkv);
  };
  for (const int count : tokens.segments()) {
    AddExtents(group.layers, segment_bytes(count), &size->sealed_extents, size);
  }
  if (tokens.has_sinks()) {
    AddExtents(group.layers, ExactExtentBytes(group.shape, dtype, kSinkTokens),
               &size->exact_extents, size);
  }
  AddExtents(group.layers * tokens.tail_blocks(),
             ExactExtentBytes(group.shape, dtype, kBlockTokens), &size->exact_extents, size);
  if (choice.codec == Codec::kPlanes && tokens.has_calibration()) {
    size->stored_bytes +=
        group.layers * CalibrationBytes(static_cast<size_t>(group.shape.kv_heads),
                                        static_cast<size_t>(group.shape.head_dim));
  }
  size->logical_bytes += group.layers * tokens.held_tokens() * RowBytes(group.shape, dtype);
  if (group.shape.sliding_window == 0) {
    size->token_bytes +=
        static_cast<double>(group.layers * segment_bytes(kSegmentTokensMax)) / kSegmentTokensMax;
  }
}

// Memory of slabs for `sessions` times these extents, at most.
uint64_t SlabBytesFor(const ExtentCounts& extents, uint64_t sessions, uint64_t budget_bytes) {
  const uint64_t slab_bytes = NewSlabBytes(kSlabBytesDefault, budget_bytes, 1);
  uint64_t shared_bytes = 0;
  uint64_t largest = kExtentAlignment;
  uint64_t own_bytes = 0;
  for (const auto& [size, count] : extents) {
    if (size > slab_bytes) {
      own_bytes += sessions * count * NewSlabBytes(kSlabBytesDefault, budget_bytes, size);
    } else {
      shared_bytes += sessions * count * size;
      largest = size;
    }
  }
  // No slab is made while one has as much left as the largest takes.
  const uint64_t used_bytes_min = slab_bytes - largest + kExtentAlignment;
  return own_bytes + (shared_bytes + used_bytes_min - 1) / used_bytes_min * slab_bytes;
}

}  // namespace

SessionSize SizeOfSession(const SessionShape& shape, const TokenHistory& history,
                          const StorageChoice& choice) {
  SessionSize size;
  for (const LayerGroup& group : shape.groups) {
    AddGroup(group, shape.dtype, history, choice, &size);
  }
  return size;
}

uint64_t SessionsThatFit(const SessionSize& size, uint64_t budget_bytes) {
  const auto fit = [&](uint64_t sessions) {
    return SlabBytesFor(size.sealed_extents, sessions, budget_bytes) +
               SlabBytesFor(size.exact_extents, sessions, budget_bytes) <=
           budget_bytes;
  };
  uint64_t least = 0;
  uint64_t most = budget_bytes / size.stored_bytes;
  while (least < most) {
    const uint64_t middle = least + (most - least + 1) / 2;
    if (fit(middle)) {
      least = middle;
    } else {
      most = middle - 1;
    }
  }
  return least;
}

}  // namespace kvdepot
