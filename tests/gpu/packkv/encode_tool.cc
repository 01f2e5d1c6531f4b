// Encodes fp32 values by `packkv` and decodes them again, for tests/golden/packkv_model_test.py.
//
//   encode_tool BLOCKS KV_HEADS HEAD_DIM PACK_TOKENS REPACKING K_SCALE V_SCALE FORM <values >result
//
// FORM: 0 as they are, 1 normalised, 2 normalised with weights. Values: K, then V, each
// [token][kv_head][channel], then for form 2 K's weights [kv_head][channel]. Result: length of the
// body (u64), the body, the paper's bits a value of K and V (two f64), decoded K and V, each
// [kv_head][token][channel].
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "gpu/packkv/body.h"

namespace kvdepot::packkv {
namespace {

int Run(char** arguments) {
  const int blocks = std::atoi(arguments[0]);
  const LayerShape shape{std::atoi(arguments[1]), std::atoi(arguments[1]), std::atoi(arguments[2]),
                         0, 0};
  Options options;
  options.pack_tokens = std::atoi(arguments[3]);
  options.repacking = static_cast<Repacking>(std::atoi(arguments[4]));
  options.k_relative_scale = std::strtof(arguments[5], nullptr);
  options.v_relative_scale = std::strtof(arguments[6], nullptr);
  const int form = std::atoi(arguments[7]);
  options.normalize = form > 0;
  if (const absl::Status valid = Validate(options); !valid.ok()) {
    std::cerr << valid << "\n";
    return 2;
  }
  const size_t heads = static_cast<size_t>(shape.kv_heads);
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const size_t tokens = static_cast<size_t>(blocks) * kBlockTokens;
  std::vector<float> values(2 * tokens * shape.row_values());
  if (std::fread(values.data(), sizeof(float), values.size(), stdin) != values.size()) return 2;
  std::vector<float> weights(form == 2 ? shape.row_values() : 0);
  if (std::fread(weights.data(), sizeof(float), weights.size(), stdin) != weights.size()) return 2;

  // Exact extents: [kv_head][K, V][token][channel].
  std::vector<std::vector<float>> extents(static_cast<size_t>(blocks));
  std::vector<const std::byte*> pointers;
  for (size_t b = 0; b < extents.size(); ++b) {
    for (size_t h = 0; h < heads; ++h) {
      for (size_t tensor = 0; tensor < 2; ++tensor) {
        for (size_t t = b * kBlockTokens; t < (b + 1) * kBlockTokens; ++t) {
          const float* const row = &values[((tensor * tokens + t) * heads + h) * dim];
          extents[b].insert(extents[b].end(), row, row + dim);
        }
      }
    }
    pointers.push_back(reinterpret_cast<const std::byte*>(extents[b].data()));
  }
  const auto body = EncodeBody({shape, DType::kFp32, pointers}, options, weights);
  if (!body.has_value() || body->size() > BodyBytesMax(shape, options, blocks)) return 3;
  const auto view = BodyView::Validate(*body, shape.kv_heads, shape.head_dim, blocks);
  if (!view.ok()) {
    std::cerr << view.status() << "\n";
    return 4;
  }
  const auto write = [](const void* data, size_t bytes) { std::fwrite(data, 1, bytes, stdout); };
  const uint64_t length = body->size();
  const double bits[] = {view->PaperBits(Tensor::kKey), view->PaperBits(Tensor::kValue)};
  write(&length, sizeof(length));
  write(body->data(), body->size());
  write(bits, sizeof(bits));
  std::vector<float> decoded(tokens * dim);
  for (const Tensor tensor : {Tensor::kKey, Tensor::kValue}) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      view->Decode(h, tensor, 0, absl::MakeSpan(decoded));
      write(decoded.data(), decoded.size() * sizeof(float));
    }
  }
  return 0;
}

}  // namespace
}  // namespace kvdepot::packkv

int main(int argc, char** argv) { return argc == 9 ? kvdepot::packkv::Run(argv + 1) : 2; }
