// Whatever the bytes: a Status, or tensors that tile the data.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "client/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file =
      kvdepot::Safetensors::Parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!file.ok()) return 0;
  size_t tensor_bytes = 0;
  for (const auto& [name, tensor] : file->tensors()) tensor_bytes += tensor.data.size();
  if (tensor_bytes > size) abort();
  return 0;
}
