#include "server/request_check.h"

#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "gpu/finite_cpu.h"

namespace kvdepot {

absl::Status CheckLayer(absl::string_view field, const Session& session, int layer) {
  const size_t layers = session.layers().size();
  if (layer >= 0 && static_cast<size_t>(layer) < layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", layer, ", must be 0..", layers - 1));
}

absl::Status CheckBytes(absl::string_view field, uint64_t bytes, uint64_t tokens,
                        uint64_t row_values, DType dtype) {
  const uint64_t expected = tokens * row_values * DTypeBytes(dtype);
  if (bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", bytes, " bytes, must be ", expected,
                                                 " (", tokens, " tokens x ", row_values,
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

absl::Status CheckFinite(Backend* backend, absl::string_view field, const CallInput& values,
                         DType dtype) {
  const size_t count = values.bytes.size() / DTypeBytes(dtype);
  const size_t index = backend->FirstNonFinite(values.data(), values.space(), dtype, count);
  if (index == count) return absl::OkStatus();
  const std::byte* const value = values.data() + index * DTypeBytes(dtype);
  if (values.space() == MemorySpace::kHost) return NotFinite(field, value, dtype, index, count);
  std::array<std::byte, sizeof(float)> read;
  backend->ReadBytes(value, DTypeBytes(dtype), read.data());
  return NotFinite(field, read.data(), dtype, index, count);
}

absl::Status InItem(size_t index, const absl::Status& status) {
  if (status.ok() || status.code() == absl::StatusCode::kResourceExhausted ||
      status.code() == absl::StatusCode::kUnavailable) {
    return status;
  }
  return absl::Status(status.code(), absl::StrCat("items[", index, "].", status.message()));
}

}  // namespace kvdepot
