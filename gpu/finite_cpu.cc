#include "gpu/finite_cpu.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "gpu/scalar.h"

namespace kvdepot {
namespace {

// A value is finite unless all bits of its exponent are set. The inner loop has no branch, so that
// it becomes vector code.
template <class Bits>
size_t FirstWithExponent(const std::byte* values, Bits exponent, size_t count) {
  constexpr size_t kStride = 1024;
  Bits strip[kStride];
  for (size_t begin = 0; begin < count; begin += kStride) {
    const size_t strip_count = std::min(kStride, count - begin);
    memcpy(strip, values + begin * sizeof(Bits), strip_count * sizeof(Bits));
    Bits found = 0;
    for (size_t i = 0; i < strip_count; ++i)
      found |= static_cast<Bits>((strip[i] & exponent) == exponent);
    if (found == 0) continue;
    for (size_t i = 0; i < strip_count; ++i) {
      if ((strip[i] & exponent) == exponent) return begin + i;
    }
  }
  return count;
}

}  // namespace

size_t FirstNonFinite(const std::byte* values, DType dtype, size_t count) {
  switch (dtype) {
    case DType::kBf16:
      return FirstWithExponent<uint16_t>(values, 0x7F80, count);
    case DType::kFp16:
      return FirstWithExponent<uint16_t>(values, 0x7C00, count);
    case DType::kFp32:
      return FirstWithExponent<uint32_t>(values, 0x7F800000u, count);
  }
  return 0;
}

absl::Status NotFinite(absl::string_view field, const std::byte* value, DType dtype, size_t index,
                       size_t count) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", LoadScalar(value, dtype),
                                                 " at index ", index, " of ", count,
                                                 " values, must be finite"));
}

absl::Status CheckFiniteOnCpu(absl::string_view field, const std::byte* values, DType dtype,
                              size_t value_count) {
  const size_t index = FirstNonFinite(values, dtype, value_count);
  if (index == value_count) return absl::OkStatus();
  return NotFinite(field, values + index * DTypeBytes(dtype), dtype, index, value_count);
}

}  // namespace kvdepot
