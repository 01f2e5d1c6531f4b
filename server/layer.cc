#include "server/layer.h"

#include <algorithm>
#include <utility>

#include "gpu/calibration_bytes.h"
#include "gpu/check.h"
#include "gpu/sliding_window.h"

namespace kvdepot {

Layer::Layer(const LayerShape& shape, DType dtype,
             std::shared_ptr<const LayerCalibration> calibration,
             QueryMomentsRef query_second_moments)
    : shape_(shape),
      dtype_(dtype),
      calibration_(std::move(calibration)),
      calibration_is_named_(calibration_ != nullptr),
      query_second_moments_(std::move(query_second_moments)) {}

uint64_t Layer::first_held() const {
  if (sinks_ != nullptr || token_count_ == 0) return 0;
  return segments_.empty() ? tail_position_ : segments_.front().position;
}

uint64_t Layer::undecided_tokens() const {
  const uint64_t decided = tail_position_ + DueTokens(due_.size());
  return token_count_ > decided ? token_count_ - decided : 0;
}

LayerState Layer::state() const {
  return {token_count_, tail_position_ > kSinkTokens ? tail_position_ : 0};
}

uint64_t Layer::stored_bytes() const {
  uint64_t bytes = sinks_ == nullptr ? 0 : sinks_->charge.bytes();
  for (const Segment& segment : segments_) bytes += segment.extent->charge.bytes();
  for (const ExtentRef& extent : tail_) bytes += extent->charge.bytes();
  if (query_second_moments_ != nullptr) bytes += query_second_moments_->charge.bytes();
  if (calibration_ != nullptr && !calibration_is_named_) {
    bytes += CalibrationBytes(static_cast<size_t>(shape_.kv_heads),
                              static_cast<size_t>(shape_.head_dim));
  }
  return bytes;
}

LayerView Layer::View(uint64_t begin, uint64_t end) const {
  KVDEPOT_CHECK(first_held() <= begin && begin <= end && end <= token_count_);
  LayerView view;
  const auto add = [&](TokenRun::Form form, const ExtentRef& extent, uint64_t position,
                       int capacity, int token_count) {
    const uint64_t from = std::max(begin, position);
    const uint64_t to = std::min(end, position + static_cast<uint64_t>(token_count));
    if (from >= to) return;
    view.runs.push_back({form, extent->data(), capacity, static_cast<int>(from - position),
                         static_cast<int>(to - from)});
    view.extents.push_back(extent);
  };
  if (sinks_ != nullptr) add(TokenRun::Form::kExact, sinks_, 0, kSinkTokens, kSinkTokens);
  for (const Segment& segment : segments_) {
    add(SegmentForm(segment.codec), segment.extent, segment.position, segment.capacity,
        segment.token_count);
  }
  uint64_t position = tail_position_;
  for (const ExtentRef& extent : tail_) {
    add(TokenRun::Form::kExact, extent, position, kBlockTokens, kBlockTokens);
    position += kBlockTokens;
  }
  return view;
}

std::vector<int> Layer::ExtentsFor(uint64_t tokens) const {
  std::vector<int> capacities;
  if (tokens == 0) return capacities;
  if (token_count_ == 0) capacities.push_back(kSinkTokens);
  const uint64_t end = token_count_ + tokens;
  if (end <= tail_position_) return capacities;
  const uint64_t blocks = (end - tail_position_ + kBlockTokens - 1) / kBlockTokens;
  capacities.insert(capacities.end(), blocks - tail_.size(), kBlockTokens);
  return capacities;
}

uint64_t Layer::RoomIn(size_t fresh_count) const {
  const uint64_t blocks = (tail_.size() + fresh_count) * kBlockTokens;
  if (token_count_ > 0) return tail_position_ + blocks - token_count_;
  // The first extent is for the sinks.
  return fresh_count == 0 ? 0 : kSinkTokens + blocks - kBlockTokens;
}

Layer::ExactSlot Layer::SlotOf(uint64_t position, absl::Span<const ExtentRef> fresh) const {
  if (token_count_ == 0) {
    if (position < kSinkTokens) return {fresh[0].get(), kSinkTokens, static_cast<int>(position)};
    fresh.remove_prefix(1);
  } else if (position < kSinkTokens) {
    return {sinks_.get(), kSinkTokens, static_cast<int>(position)};
  }
  const size_t block = (position - tail_position_) / kBlockTokens;
  const int slot = static_cast<int>((position - tail_position_) % kBlockTokens);
  const ExtentRef& extent = block < tail_.size() ? tail_[block] : fresh[block - tail_.size()];
  return {extent.get(), kBlockTokens, slot};
}

std::vector<Placement> Layer::Place(uint64_t tokens, absl::Span<const ExtentRef> fresh) const {
  std::vector<Placement> placements;
  for (uint64_t from = 0; from < tokens;) {
    const ExactSlot at = SlotOf(token_count_ + from, fresh);
    const uint64_t count = std::min<uint64_t>(tokens - from, at.capacity - at.slot);
    placements.push_back(
        {at.extent->data(), at.capacity, at.slot, static_cast<int>(from), static_cast<int>(count)});
    from += count;
  }
  return placements;
}

void Layer::Append(uint64_t tokens, absl::Span<const ExtentRef> fresh,
                   QueryMomentsRef query_second_moments) {
  KVDEPOT_CHECK(fresh.size() == ExtentsFor(tokens).size());
  if (token_count_ == 0 && tokens > 0) {
    sinks_ = fresh[0];
    fresh.remove_prefix(1);
  }
  tail_.insert(tail_.end(), fresh.begin(), fresh.end());
  token_count_ += tokens;
  if (query_second_moments != nullptr) query_second_moments_ = std::move(query_second_moments);
}

DroppedExtents Layer::DropBefore(uint64_t oldest_query) {
  DroppedExtents dropped;
  // Everything before is invisible, and so is this position to the queries behind the oldest one.
  const uint64_t visible = FirstVisible(shape_, oldest_query);
  if (sinks_ != nullptr && visible >= kSinkTokens) dropped.push_back(std::move(sinks_));
  while (!segments_.empty() && segments_.front().end() <= visible) {
    dropped.push_back(std::move(segments_.front().extent));
    segments_.pop_front();
  }
  while (segments_.empty() && sinks_ == nullptr && !tail_.empty()) {
    // A due segment goes as a whole or stays.
    const int tokens = due_.empty() ? kBlockTokens : due_.front().token_count;
    if (tail_position_ + static_cast<uint64_t>(tokens) > visible) break;
    dropped.insert(dropped.end(), tail_.begin(), tail_.begin() + tokens / kBlockTokens);
    tail_.erase(tail_.begin(), tail_.begin() + tokens / kBlockTokens);
    tail_position_ += static_cast<uint64_t>(tokens);
    if (!due_.empty()) due_.pop_front();
  }
  return dropped;
}

void Layer::Decide(const DecidedSegments& decided, absl::Time now) {
  for (const int token_count : decided) due_.push_back({token_count, now});
}

uint64_t Layer::DueTokens(size_t count) const {
  uint64_t tokens = 0;
  for (size_t i = 0; i < count; ++i) tokens += static_cast<uint64_t>(due_[i].token_count);
  return tokens;
}

DueSegment Layer::Due(size_t index) const {
  KVDEPOT_CHECK(index < due_.size());
  const uint64_t before = DueTokens(index);
  const DecidedSegment& decided = due_[index];
  const auto first = tail_.begin() + static_cast<std::ptrdiff_t>(before / kBlockTokens);
  return {tail_position_ + before,
          decided.token_count,
          decided.since,
          {first, first + decided.token_count / kBlockTokens}};
}

DroppedExtents Layer::Seal(ExtentRef segment, Codec codec,
                           std::shared_ptr<const LayerCalibration> calibration) {
  KVDEPOT_CHECK(!due_.empty());
  const int tokens = due_.front().token_count;
  const auto blocks_end = tail_.begin() + tokens / kBlockTokens;
  DroppedExtents dropped(tail_.begin(), blocks_end);
  tail_.erase(tail_.begin(), blocks_end);
  due_.pop_front();
  segments_.push_back({std::move(segment), codec, tail_position_, tokens, tokens});
  tail_position_ += static_cast<uint64_t>(tokens);
  calibration_ = std::move(calibration);
  query_second_moments_ = nullptr;
  return dropped;
}

absl::optional<CutExtent> Layer::OpenExtent() const {
  if (token_count_ == 0) return absl::nullopt;
  if (token_count_ < kSinkTokens) {
    return CutExtent{sinks_, kSinkTokens, static_cast<int>(token_count_)};
  }
  const uint64_t kept = (token_count_ - tail_position_) % kBlockTokens;
  if (kept == 0) return absl::nullopt;
  return CutExtent{tail_.back(), kBlockTokens, static_cast<int>(kept)};
}

ExtentRef Layer::ReplaceOpenExtent(ExtentRef copy) {
  return std::exchange(token_count_ < kSinkTokens ? sinks_ : tail_.back(), std::move(copy));
}

absl::optional<CutExtent> Layer::ExtentCutBy(uint64_t token_count) const {
  if (token_count >= token_count_) return absl::nullopt;
  if (token_count < kSinkTokens) {
    if (token_count == 0) return absl::nullopt;
    return CutExtent{sinks_, kSinkTokens, static_cast<int>(token_count)};
  }
  if (token_count <= tail_position_) return absl::nullopt;
  const uint64_t kept = (token_count - tail_position_) % kBlockTokens;
  if (kept == 0) return absl::nullopt;
  return CutExtent{tail_[(token_count - tail_position_) / kBlockTokens], kBlockTokens,
                   static_cast<int>(kept)};
}

DroppedExtents Layer::Truncate(uint64_t token_count, ExtentRef copy) {
  DroppedExtents dropped;
  if (token_count >= token_count_) return dropped;
  token_count_ = token_count;
  const uint64_t tail_tokens = token_count > tail_position_ ? token_count - tail_position_ : 0;
  // The cut extent is dropped as well; its copy takes its place.
  while (tail_.size() > tail_tokens / kBlockTokens) {
    dropped.push_back(std::move(tail_.back()));
    tail_.pop_back();
  }
  while (!segments_.empty() && segments_.back().position >= token_count) {
    dropped.push_back(std::move(segments_.back().extent));
    segments_.pop_back();
  }
  if (token_count < tail_position_) {
    tail_position_ = std::max<uint64_t>(token_count, kSinkTokens);
    if (!segments_.empty()) {
      segments_.back().token_count = static_cast<int>(token_count - segments_.back().position);
    }
  }
  uint64_t due_tokens = DueTokens(due_.size());
  while (!due_.empty() && due_tokens > tail_tokens) {
    due_tokens -= static_cast<uint64_t>(due_.back().token_count);
    due_.pop_back();
  }
  if (token_count < kSinkTokens && sinks_ != nullptr) {
    dropped.push_back(std::exchange(sinks_, std::move(copy)));
  } else if (copy != nullptr) {
    tail_.push_back(std::move(copy));
  }
  return dropped;
}

void Layer::CheckInvariants() const {
  const auto check_extent = [](const StoredExtent& extent, uint64_t bytes) {
    KVDEPOT_CHECK(extent.memory->size_bytes() == bytes);
    KVDEPOT_CHECK(extent.charge.bytes() == bytes);
  };
  if (sinks_ != nullptr) check_extent(*sinks_, ExactExtentBytes(shape_, dtype_, kSinkTokens));
  KVDEPOT_CHECK(sinks_ != nullptr || token_count_ == 0 || shape_.sliding_window > 0);
  KVDEPOT_CHECK(sinks_ == nullptr || token_count_ > 0);

  uint64_t position = segments_.empty() ? tail_position_ : segments_.front().position;
  KVDEPOT_CHECK(position >= kSinkTokens);
  KVDEPOT_CHECK(sinks_ == nullptr || position == kSinkTokens);
  for (const Segment& segment : segments_) {
    KVDEPOT_CHECK(segment.position == position);
    KVDEPOT_CHECK(segment.token_count > 0 && segment.token_count <= segment.capacity);
    KVDEPOT_CHECK(segment.capacity % kBlockTokens == 0);
    check_extent(*segment.extent, segment.extent->memory->size_bytes());
    position = segment.end();
  }
  KVDEPOT_CHECK(position == tail_position_);

  const uint64_t tail_tokens = token_count_ > tail_position_ ? token_count_ - tail_position_ : 0;
  KVDEPOT_CHECK(tail_.size() == (tail_tokens + kBlockTokens - 1) / kBlockTokens);
  for (const ExtentRef& extent : tail_) {
    check_extent(*extent, ExactExtentBytes(shape_, dtype_, kBlockTokens));
  }
  KVDEPOT_CHECK(segments_.empty() || token_count_ >= tail_position_);
  KVDEPOT_CHECK(DueTokens(due_.size()) <= tail_tokens);
}

}  // namespace kvdepot
