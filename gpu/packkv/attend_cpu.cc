#include "gpu/packkv/attend_cpu.h"

#include <algorithm>
#include <vector>

#include "absl/types/span.h"
#include "gpu/raw/attend_cpu.h"
#include "gpu/shape.h"

namespace kvdepot::packkv {

void AttendBody(const QueryRows& rows, const BodyView& body, int head, uint64_t position, int first,
                int count, const RowResults& results) {
  const size_t dim = static_cast<size_t>(rows.head_dim);
  std::vector<float> k(kBlockTokens * dim);
  std::vector<float> v(kBlockTokens * dim);
  const uint64_t seen_begin = rows.begin[0];
  const uint64_t seen_end = rows.end[rows.count - 1];
  const int end = first + count;
  for (int token = first; token < end;) {
    const int block_count = std::min(kBlockTokens - token % kBlockTokens, end - token);
    const uint64_t position_end = position + static_cast<uint64_t>(block_count);
    if (position < seen_end && position_end > seen_begin) {
      const size_t values = static_cast<size_t>(block_count) * dim;
      body.Decode(head, Tensor::kKey, token, absl::MakeSpan(k.data(), values));
      body.Decode(head, Tensor::kValue, token, absl::MakeSpan(v.data(), values));
      raw::AttendExact(rows, DType::kFp32, reinterpret_cast<const std::byte*>(k.data()),
                       reinterpret_cast<const std::byte*>(v.data()), position, block_count,
                       results);
    }
    position = position_end;
    token += block_count;
  }
}

}  // namespace kvdepot::packkv
