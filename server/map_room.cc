#include "server/map_room.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace kvdepot {

namespace {

// False: there was no memory for all.
bool AddRoom(EngineState* state, Session* session, bool asks) {
  for (size_t i = 0; i < session->layers().size(); ++i) {
    std::vector<uint64_t> sizes_bytes;
    bool can_wait = false;
    {
      MutexLock lock(state->mu);
      const absl::optional<MappedWriter>& writer = session->writer();
      // Its lease may have ended meanwhile.
      if (!writer.has_value()) return true;
      const Layer& layer = session->layers()[i];
      const uint64_t tokens = std::min(writer->room_tokens,
                                       state->options.tokens_per_session_max - layer.token_count());
      const std::vector<int> capacities = layer.ExtentsFor(tokens);
      can_wait = !asks || layer.RoomIn(writer->room[i].size()) > 0;
      for (size_t k = writer->room[i].size(); k < capacities.size(); ++k) {
        sizes_bytes.push_back(
            ExactExtentBytes(layer.shape(), session->spec().dtype, capacities[k]));
      }
    }
    absl::StatusOr<std::vector<ExtentRef>> extents =
        can_wait ? state->AllocateIfFree(session->tenant(), ExtentUse::kTail, sizes_bytes)
                 : state->Allocate(session->tenant(), ExtentUse::kTail, sizes_bytes);
    if (!extents.ok()) return false;
    MutexLock lock(state->mu);
    absl::optional<MappedWriter>& writer = session->writer();
    if (!writer.has_value()) return true;
    for (ExtentRef& extent : *extents) writer->room[i].push_back(std::move(extent));
  }
  return true;
}

}  // namespace

uint64_t RoomTokens(const Session& session) {
  uint64_t room = std::numeric_limits<uint64_t>::max();
  for (size_t i = 0; i < session.layers().size(); ++i) {
    room = std::min(room, session.layers()[i].RoomIn(session.writer()->room[i].size()));
  }
  return room;
}

void TopUpRoom(EngineState* state, Session* session) { (void)AddRoom(state, session, true); }

bool TopUpRoomIfFree(EngineState* state, Session* session) {
  uint64_t due_bytes = 0;
  {
    MutexLock lock(state->mu);
    due_bytes = session->due_bytes();
  }
  const absl::StatusOr<MemoryCharge> spared = state->budget.Reserve(session->tenant(), due_bytes);
  return spared.ok() && AddRoom(state, session, false);
}

}  // namespace kvdepot
