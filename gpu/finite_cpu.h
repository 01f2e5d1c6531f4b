// Finds values that are not finite.
#ifndef KVDEPOT_GPU_FINITE_CPU_H_
#define KVDEPOT_GPU_FINITE_CPU_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gpu/shape.h"

namespace kvdepot {

// Index of the first infinity or NaN among `count` values; `count` if there is none. `values` need
// no alignment.
size_t FirstNonFinite(const std::byte* values, DType dtype, size_t count);

// INVALID_ARGUMENT naming `field`, the value at `value`, which is not finite, and its index among
// `count` values.
absl::Status NotFinite(absl::string_view field, const std::byte* value, DType dtype, size_t index,
                       size_t count);

// NotFinite of the first such value, if there is one.
absl::Status CheckFiniteOnCpu(absl::string_view field, const std::byte* values, DType dtype,
                              size_t value_count);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_FINITE_CPU_H_
