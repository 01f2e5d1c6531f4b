#include "server/request_check.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace kvdepot {

absl::Status CheckLayer(absl::string_view field, const Session& session, int layer) {
  const size_t layers = session.layers().size();
  if (layer >= 0 && static_cast<size_t>(layer) < layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", layer, ", must be 0..", layers - 1));
}

absl::Status CheckBytes(absl::string_view field, absl::string_view bytes, uint64_t tokens,
                        uint64_t row_values, DType dtype) {
  const uint64_t expected = tokens * row_values * DTypeBytes(dtype);
  if (bytes.size() == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", bytes.size(), " bytes, must be ",
                                                 expected, " (", tokens, " tokens x ", row_values,
                                                 " values x ", DTypeBytes(dtype), " bytes)"));
}

absl::Status CheckBatch(float scale, size_t items, const EngineOptions& options) {
  if (!std::isfinite(scale)) {
    return absl::InvalidArgumentError(absl::StrCat("scale: ", scale, ", must be finite"));
  }
  if (items < 1 || items > static_cast<size_t>(options.batch_sessions_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("items: ", items, ", must be 1..", options.batch_sessions_max));
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(Backend* backend, absl::string_view field, absl::string_view bytes,
                         DType dtype) {
  return backend->CheckFinite(field, reinterpret_cast<const std::byte*>(bytes.data()), dtype,
                              bytes.size() / DTypeBytes(dtype));
}

absl::Status InItem(size_t index, const absl::Status& status) {
  if (status.ok() || status.code() == absl::StatusCode::kResourceExhausted ||
      status.code() == absl::StatusCode::kUnavailable) {
    return status;
  }
  return absl::Status(status.code(), absl::StrCat("items[", index, "].", status.message()));
}

}  // namespace kvdepot
