// What a mapped session's reader needs: where its tokens lie, at one moment. Immutable.
#ifndef KVDEPOT_SERVER_DIRECTORY_H_
#define KVDEPOT_SERVER_DIRECTORY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gpu/calibration.h"
#include "gpu/token_run.h"
#include "server/segment.h"
#include "server/session.h"

namespace kvdepot {

// Holds every extent that it lists: none of them is free, and so none is reused, as long as
// anything holds the directory. Leases hold those that their processes were sent and have not
// retired.
struct Directory {
  struct Layer {
    // Of runs[0]. The runs are in order of position and without gaps, up to token_count.
    uint64_t first_position = 0;
    std::vector<TokenRun> runs;
    std::vector<ExtentRef> extents;  // One a run.
    // The writer's, to continue in: no reader is told of them.
    std::vector<ExtentRef> room;
    std::shared_ptr<const LayerCalibration> calibration;
  };
  // Counts per session.
  uint64_t version = 0;
  uint64_t generation = 0;
  // Of every layer.
  uint64_t token_count = 0;
  std::vector<Layer> layers;
};

using DirectoryRef = std::shared_ptr<const Directory>;

// Whether two list the same tokens in the same places, whatever their versions.
bool SameContent(const Directory& a, const Directory& b);

// The newest directory of `session`: the one built last if that one is still held and nothing has
// changed, otherwise a new version. Under the engine's lock.
DirectoryRef NewestDirectory(Session* session);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_DIRECTORY_H_
