// Which extents hold the tokens of one layer of one session.
//
//   position 0    16                        tail_position              token_count
//            |sinks| segment | ... | segment | 64 | 64 | 64 | 64 (partly used) |
//                                            |<- due ->|<--- undecided ------->|
//
// Bookkeeping only: it never touches the tokens' bytes. Sinks and tail are exact extents, the
// tail's begin at tail_position + 64 i. *Due* are segments that the seal rule has decided and that
// are not encoded yet.
//
// Not thread-safe: the engine's lock guards it. Slots are written once: a reader that holds an
// extent sees no slot change that it may look at, so Truncate replaces the extent that it cuts.
#ifndef KVDEPOT_SERVER_LAYER_H_
#define KVDEPOT_SERVER_LAYER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "gpu/calibration.h"
#include "gpu/seal_rule.h"
#include "gpu/shape.h"
#include "gpu/token_run.h"
#include "server/charged.h"
#include "server/segment.h"
#include "server/session_types.h"

namespace kvdepot {

// Tokens [from, from + count) of an addition go to the slots from first_slot on.
struct Placement {
  std::byte* extent = nullptr;
  int capacity = 0;
  int first_slot = 0;
  int from = 0;
  int count = 0;
};

// A view of consecutive tokens that stays valid while it is held, whatever becomes of the session.
struct LayerView {
  std::vector<TokenRun> runs;
  std::vector<ExtentRef> extents;  // One a run.
};

// A segment that is due: whole blocks of the tail.
struct DueSegment {
  uint64_t position = 0;
  int token_count = 0;
  // When it was decided.
  absl::Time since;
  std::vector<ExtentRef> blocks;
};

// The exact extent inside which a truncation ends. Its first `kept` tokens must be copied.
struct CutExtent {
  ExtentRef extent;
  int capacity = 0;
  int kept = 0;
};

class Layer {
 public:
  // `calibration` is null for raw, and for planes until the layer makes its own; the moments are
  // for such a layer alone.
  Layer(const LayerShape& shape, DType dtype, std::shared_ptr<const LayerCalibration> calibration,
        QueryMomentsRef query_second_moments);

  const LayerShape& shape() const { return shape_; }
  const std::shared_ptr<const LayerCalibration>& calibration() const { return calibration_; }
  const QueryMomentsRef& query_second_moments() const { return query_second_moments_; }
  uint64_t token_count() const { return token_count_; }
  // First token that is still held; before it are those that left the sliding window.
  uint64_t first_held() const;
  // What the seal rule counts.
  uint64_t undecided_tokens() const;
  LayerState state() const;
  // What the layer is charged for, its moments or its own calibration included.
  uint64_t stored_bytes() const;

  // Tokens [begin, end), which are held.
  LayerView View(uint64_t begin, uint64_t end) const;

  // Capacities of the extents that `tokens` more tokens need, in order.
  std::vector<int> ExtentsFor(uint64_t tokens) const;
  // Where `tokens` more tokens go, given those extents.
  std::vector<Placement> Place(uint64_t tokens, absl::Span<const ExtentRef> fresh) const;
  // How many more tokens fit, given so many extents as ExtentsFor asks for.
  uint64_t RoomIn(size_t fresh_count) const;
  // `tokens` more tokens are there. `query_second_moments`, unless null, take the place of those
  // before, if they still count.
  void Append(uint64_t tokens, absl::Span<const ExtentRef> fresh,
              QueryMomentsRef query_second_moments);

  // Drops what no query at `oldest_query` or later can see. Nothing without a sliding window.
  DroppedExtents DropBefore(uint64_t oldest_query);

  // Whether moments have a use: until the first segment is decided, in a layer that will make a
  // calibration of its own.
  bool MomentsCount(Codec codec) const {
    return codec == Codec::kPlanes && calibration_ == nullptr && due_.empty();
  }

  // `now`: since when they are due.
  void Decide(const DecidedSegments& decided, absl::Time now);
  size_t due_count() const { return due_.size(); }
  uint64_t due_tokens() const { return DueTokens(due_.size()); }
  // The oldest first. `index` is below due_count().
  DueSegment Due(size_t index) const;
  // `segment` holds the tokens of Due(0), encoded with `codec`. `calibration`: of the session's
  // layer from now on, null for raw sessions.
  DroppedExtents Seal(ExtentRef segment, Codec codec,
                      std::shared_ptr<const LayerCalibration> calibration);

  // The exact extent that the next token goes to, if it holds some already: `kept`.
  absl::optional<CutExtent> OpenExtent() const;
  // `copy` takes the place of that extent, which is returned.
  ExtentRef ReplaceOpenExtent(ExtentRef copy);

  absl::optional<CutExtent> ExtentCutBy(uint64_t token_count) const;
  // Drops the tokens from `token_count` on; nothing if there are none. `copy` replaces the extent
  // that ExtentCutBy named, or is null. Due segments that lose tokens are not due any more.
  DroppedExtents Truncate(uint64_t token_count, ExtentRef copy);

  // Aborts unless counts, positions, sizes and charges agree.
  void CheckInvariants() const;

 private:
  // The exact extent of position `position` (sinks or tail) among those held and then `fresh`.
  struct ExactSlot {
    const StoredExtent* extent;
    int capacity;
    int slot;
  };
  // Not encoded yet.
  struct DecidedSegment {
    int token_count;
    absl::Time since;
  };
  // Tokens of the first `count` due segments.
  uint64_t DueTokens(size_t count) const;
  ExactSlot SlotOf(uint64_t position, absl::Span<const ExtentRef> fresh) const;

  const LayerShape shape_;
  const DType dtype_;
  std::shared_ptr<const LayerCalibration> calibration_;
  const bool calibration_is_named_;
  QueryMomentsRef query_second_moments_;
  uint64_t token_count_ = 0;
  ExtentRef sinks_;  // Null while there are no tokens, and after they left the sliding window.
  std::deque<Segment> segments_;
  uint64_t tail_position_ = kSinkTokens;
  std::deque<ExtentRef> tail_;
  std::deque<DecidedSegment> due_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_LAYER_H_
