#include "client/kv_arrays.h"

#include <cstdint>
#include <cstring>

#include "gpu/numeric.h"

namespace kvdepot {

std::vector<float> FloatsFromBf16(absl::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(uint16_t));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    memcpy(&bits, bytes.data() + i * sizeof(bits), sizeof(bits));
    values[i] = Bf16ToFloat(bits);
  }
  return values;
}

std::vector<float> FloatsFromFp32(absl::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

std::string Bf16FromFloats(absl::Span<const float> values) {
  std::string bytes(values.size() * sizeof(uint16_t), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = FloatToBf16(values[i]);
    memcpy(&bytes[i * sizeof(bits)], &bits, sizeof(bits));
  }
  return bytes;
}

}  // namespace kvdepot
