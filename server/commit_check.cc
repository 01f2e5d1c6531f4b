#include "server/commit_check.h"

#include <cstddef>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gpu/finite_cpu.h"
#include "server/layer.h"

namespace kvdepot {
namespace {

// Names the first value of a run that is not finite, head after head K and V.
absl::Status NameValue(Backend* backend, size_t layer, const LayerShape& shape, DType dtype,
                       const TokenRun& run) {
  const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
  const size_t tensor_bytes = static_cast<size_t>(run.capacity) * row_bytes;
  const size_t count = static_cast<size_t>(run.count);
  std::vector<std::byte> values(count * row_bytes);
  for (size_t tensor = 0; tensor < 2 * static_cast<size_t>(shape.kv_heads); ++tensor) {
    const size_t offset = tensor * tensor_bytes + static_cast<size_t>(run.first) * row_bytes;
    backend->ReadBytes(run.data + offset, values.size(), values.data());
    absl::Status status =
        CheckFiniteOnCpu(absl::StrCat("layers[", layer, "].kv_heads[", tensor / 2, "].",
                                      tensor % 2 == 0 ? "k" : "v"),
                         values.data(), dtype, count * static_cast<size_t>(shape.head_dim));
    if (!status.ok()) return status;
  }
  // The client has written it anew meanwhile, which it must not.
  return absl::InvalidArgumentError(absl::StrCat("layers[", layer, "]: a value was not finite"));
}

}  // namespace

absl::Status CheckCommitted(EngineState* state, const Session& session, uint64_t token_count) {
  std::vector<WrittenRun> runs;
  std::vector<size_t> layer_of;
  // Holds the extents: the lease may end meanwhile.
  std::vector<std::vector<ExtentRef>> room;
  {
    MutexLock lock(state->mu);
    if (!session.writer().has_value()) return absl::OkStatus();
    room = session.writer()->room;
    for (size_t i = 0; i < session.layers().size(); ++i) {
      const Layer& layer = session.layers()[i];
      for (const Placement& slots : layer.Place(token_count - layer.token_count(), room[i])) {
        runs.push_back({layer.shape(),
                        {TokenRun::Form::kExact, slots.extent, slots.capacity, slots.first_slot,
                         slots.count}});
        layer_of.push_back(i);
      }
    }
  }
  Backend* const backend = state->backend.get();
  const DType dtype = session.spec().dtype;
  const size_t found = backend->FirstNonFiniteRun(dtype, runs);
  if (found == runs.size()) return absl::OkStatus();
  return NameValue(backend, layer_of[found], runs[found].shape, dtype, runs[found].run);
}

}  // namespace kvdepot
