// A `packkv` segment as the CPU writes it, and the values that the CPU reads from it.
#ifndef KVDEPOT_TESTS_GPU_PACKKV_ENCODED_SEGMENT_H_
#define KVDEPOT_TESTS_GPU_PACKKV_ENCODED_SEGMENT_H_

#include <cstring>
#include <vector>

#include "gpu/check.h"
#include "gpu/packkv/body.h"
#include "gpu/segment_header.h"
#include "tests/gpu/packkv/aligned_bytes.h"

namespace kvdepot::packkv {

// Values: [token][kv_head][channel], whole blocks of tokens.
class EncodedSegment {
 public:
  EncodedSegment(const LayerShape& shape, const Options& options, const std::vector<float>& k,
                 const std::vector<float>& v)
      : bytes_(Encode(shape, options, k, v)),
        tokens_(static_cast<int>(k.size() / shape.row_values())) {
    const BodyView view = BodyView::Of(bytes_.data() + SegmentHeaderBytes(shape.kv_heads),
                                       shape.kv_heads, shape.head_dim, tokens_ / kBlockTokens);
    k_ = Decode(view, shape, Tensor::kKey);
    v_ = Decode(view, shape, Tensor::kValue);
  }

  const std::byte* data() const { return bytes_.data(); }
  int tokens() const { return tokens_; }
  const std::vector<float>& k() const { return k_; }
  const std::vector<float>& v() const { return v_; }

 private:
  static AlignedBytes Encode(const LayerShape& shape, const Options& options,
                             const std::vector<float>& k, const std::vector<float>& v) {
    const size_t block_values = kBlockTokens * shape.row_values();
    const size_t dim = static_cast<size_t>(shape.head_dim);
    std::vector<float> extents;
    for (size_t block = 0; block < k.size(); block += block_values) {
      for (size_t head = 0; head < shape.row_values(); head += dim) {
        for (const std::vector<float>* values : {&k, &v}) {
          for (size_t at = block + head; at < block + block_values; at += shape.row_values()) {
            const auto row = values->begin() + static_cast<ptrdiff_t>(at);
            extents.insert(extents.end(), row, row + shape.head_dim);
          }
        }
      }
    }
    std::vector<const std::byte*> blocks;
    for (size_t at = 0; at < extents.size(); at += 2 * block_values)
      blocks.push_back(reinterpret_cast<const std::byte*>(&extents[at]));
    const auto body = EncodeBody({shape, DType::kFp32, blocks}, options);
    KVDEPOT_CHECK(body.has_value());
    const size_t header_bytes = SegmentHeaderBytes(shape.kv_heads);
    AlignedBytes bytes(header_bytes + body->size());
    std::memcpy(bytes.data() + header_bytes, body->data(), body->size());
    return bytes;
  }
  std::vector<float> Decode(const BodyView& view, const LayerShape& shape, Tensor tensor) const {
    const size_t dim = static_cast<size_t>(shape.head_dim);
    const size_t tokens = static_cast<size_t>(tokens_);
    std::vector<float> all(tokens * shape.row_values());
    std::vector<float> of_head(tokens * dim);
    for (int head = 0; head < shape.kv_heads; ++head) {
      view.Decode(head, tensor, 0, absl::MakeSpan(of_head));
      for (size_t token = 0; token < tokens; ++token) {
        std::memcpy(&all[token * shape.row_values() + static_cast<size_t>(head) * dim],
                    &of_head[token * dim], dim * sizeof(float));
      }
    }
    return all;
  }

  AlignedBytes bytes_;
  int tokens_;
  std::vector<float> k_;
  std::vector<float> v_;
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_TESTS_GPU_PACKKV_ENCODED_SEGMENT_H_
