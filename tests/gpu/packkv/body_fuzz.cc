// Any bytes are refused, or are a body that can be read to its end.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gpu/packkv/body.h"

// The first byte says the geometry, the rest is the body.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvdepot;
  if (size == 0) return 0;
  const int kv_heads = 1 + data[0] % 3;
  const int head_dim = 64 << (data[0] / 3 % 2);
  const int blocks = 1 + data[0] / 6 % 2;
  std::vector<uint32_t> aligned(size / 4 + 1);
  std::memcpy(aligned.data(), data + 1, size - 1);
  const auto* const bytes = reinterpret_cast<const std::byte*>(aligned.data());
  const auto view = packkv::BodyView::Validate({bytes, size - 1}, kv_heads, head_dim, blocks);
  if (!view.ok()) {
    if (!absl::IsDataLoss(view.status())) std::abort();
    return 0;
  }
  std::vector<float> values(static_cast<size_t>(head_dim) * static_cast<size_t>(blocks) *
                            kBlockTokens);
  for (int head = 0; head < kv_heads; ++head) {
    view->Decode(head, packkv::Tensor::kKey, 0, absl::MakeSpan(values));
    view->Decode(head, packkv::Tensor::kValue, 0, absl::MakeSpan(values));
  }
  return 0;
}
