// A backend whose extents are filled with NaN as they are given back: whoever still reads one, or
// is given bytes of one without writing them first, computes NaN.
#ifndef KVDEPOT_TESTS_INTEGRATION_POISONING_BACKEND_H_
#define KVDEPOT_TESTS_INTEGRATION_POISONING_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "gpu/backend.h"
#include "gpu/backend_factory.h"

namespace kvdepot {

// For Server::Hooks::make_backend.
absl::StatusOr<std::unique_ptr<Backend>> MakePoisoningBackend(const BackendOptions& options);

// Every byte of device memory becomes `byte`; returns when it is so.
void FillDeviceMemory(std::byte* data, size_t size_bytes, int byte);

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_POISONING_BACKEND_H_
