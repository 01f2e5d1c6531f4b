// Checks that calls share. Messages begin with the field's name in the contract, then a colon.
#ifndef KVDEPOT_SERVER_REQUEST_CHECK_H_
#define KVDEPOT_SERVER_REQUEST_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gpu/backend.h"
#include "server/call_memory.h"
#include "server/engine_options.h"
#include "server/session.h"

namespace kvdepot {

// INVALID_ARGUMENT naming `field` if the session has no such layer.
absl::Status CheckLayer(absl::string_view field, const Session& session, int layer);

// INVALID_ARGUMENT naming `field`, the bytes there and those that `tokens` of `row_values` values
// take.
absl::Status CheckBytes(absl::string_view field, uint64_t bytes, uint64_t tokens,
                        uint64_t row_values, DType dtype);

// What Attend and Decode have beside their items: INVALID_ARGUMENT naming scale or items.
absl::Status CheckBatch(float scale, size_t items, const EngineOptions& options);

// INVALID_ARGUMENT naming `field` and the first value that is not finite. On the worker.
absl::Status CheckFinite(Backend* backend, absl::string_view field, const CallInput& values,
                         DType dtype);

// `status` of one item of a batch: "items[2].chunk.k: ...". Limits are not the item's and keep
// their name.
absl::Status InItem(size_t index, const absl::Status& status);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_REQUEST_CHECK_H_
