#include "server/commit_check.h"

#include <cstddef>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/layer.h"

namespace kvdepot {
namespace {

// The slots of one placement, head after head K and V.
absl::Status CheckSlots(Backend* backend, size_t layer, const LayerShape& shape, DType dtype,
                        const Placement& slots, std::vector<std::byte>* values) {
  const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
  const size_t tensor_bytes = static_cast<size_t>(slots.capacity) * row_bytes;
  const size_t count = static_cast<size_t>(slots.count);
  values->resize(count * row_bytes);
  for (size_t tensor = 0; tensor < 2 * static_cast<size_t>(shape.kv_heads); ++tensor) {
    const size_t offset = tensor * tensor_bytes + static_cast<size_t>(slots.first_slot) * row_bytes;
    backend->ReadBytes(slots.extent + offset, values->size(), values->data());
    absl::Status status =
        backend->CheckFinite(absl::StrCat("layers[", layer, "].kv_heads[", tensor / 2, "].",
                                          tensor % 2 == 0 ? "k" : "v"),
                             values->data(), dtype, count * static_cast<size_t>(shape.head_dim));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCommitted(EngineState* state, const Session& session, uint64_t token_count) {
  std::vector<std::vector<Placement>> layers;
  // Holds the extents: the lease may end meanwhile.
  std::vector<std::vector<ExtentRef>> room;
  {
    MutexLock lock(state->mu);
    if (!session.writer().has_value()) return absl::OkStatus();
    room = session.writer()->room;
    for (size_t i = 0; i < session.layers().size(); ++i) {
      const Layer& layer = session.layers()[i];
      layers.push_back(layer.Place(token_count - layer.token_count(), room[i]));
    }
  }
  std::vector<std::byte> values;
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const Placement& slots : layers[i]) {
      absl::Status status = CheckSlots(state->backend.get(), i, session.spec().layers[i],
                                       session.spec().dtype, slots, &values);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace kvdepot
