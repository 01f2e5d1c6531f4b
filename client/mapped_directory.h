// A directory (proto/kvdepot/v1/mapping.proto) as addresses in this process. Internal to the client
// library.
#ifndef KVDEPOT_CLIENT_MAPPED_DIRECTORY_H_
#define KVDEPOT_CLIENT_MAPPED_DIRECTORY_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/calibration.h"
#include "gpu/ipc_region.h"
#include "gpu/shape.h"
#include "gpu/token_run.h"
#include "kvdepot/v1/mapping.pb.h"
#include "kvdepot/v1/session.pb.h"

namespace kvdepot {

using RegionRef = std::shared_ptr<const MappedRegion>;
// The region of a slab, by its serial number; null if it is not mapped.
using RegionLookup = std::function<RegionRef(uint64_t serial)>;

// What a session's calls rely on, from its first MapSession.
struct MappedShape {
  std::vector<LayerShape> layers;
  DType dtype = DType::kBf16;
  Codec codec = Codec::kRaw;
  Profile profile = Profile::kCompact;
  // Whether this process' CPU may read what is mapped.
  bool is_host_memory = true;

  // DATA_LOSS: what the daemon says is no session of this contract.
  static absl::StatusOr<MappedShape> Of(const v1::Session& session);
};

// Where consecutive free slots lie.
struct FreeSlots {
  std::byte* extent = nullptr;
  int capacity = 0;
  int first_slot = 0;
  int count = 0;
};

// Immutable. Keeps the slabs that it lists mapped.
struct MappedDirectory {
  struct Extent {
    TokenRun run;
    RegionRef region;
  };
  struct Layer {
    // Of the first run.
    uint64_t first_position = 0;
    std::vector<Extent> extents;
    // The writer's, without tokens, in order.
    std::vector<Extent> room;
    std::shared_ptr<const LayerCalibration> calibration;

    // Where tokens behind the directory's go, in order: the rest of the last extent, then the room.
    std::vector<FreeSlots> free_slots() const;
    // Runs of the directory's tokens and of `more` behind them, which were written there.
    std::vector<TokenRun> RunsWith(uint64_t more) const;
  };
  uint64_t version = 0;
  uint64_t generation = 0;
  uint64_t token_count = 0;
  std::vector<Layer> layers;

  // How many tokens fit behind the directory's, in every layer.
  uint64_t room_tokens() const;

  // From the wire. `base` is the directory that the request named as have_version, or null. Nothing
  // of `message` is believed: DATA_LOSS names the first entry that is outside its slab, too small
  // for its tokens, leaves a gap, or is otherwise none of the contract. NOT_FOUND: a slab that is
  // not mapped.
  static absl::StatusOr<std::shared_ptr<MappedDirectory>> Read(const v1::MappedDirectory& message,
                                                               const MappedDirectory* base,
                                                               const MappedShape& shape,
                                                               const RegionLookup& regions);
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_MAPPED_DIRECTORY_H_
