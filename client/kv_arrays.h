// Keys and values of one layer as fp32 arrays: what the reference computations of this folder work
// on.
#ifndef KVDEPOT_CLIENT_KV_ARRAYS_H_
#define KVDEPOT_CLIENT_KV_ARRAYS_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace kvdepot {

// [token][kv_head][channel], dense.
struct KvArrays {
  int token_count = 0;
  int kv_heads = 0;
  int head_dim = 0;
  std::vector<float> k;
  std::vector<float> v;

  // Index of channel 0.
  size_t At(int token, int kv_head) const {
    return (static_cast<size_t>(token) * kv_heads + kv_head) * head_dim;
  }
};

// `bytes` holds little-endian bf16 (two bytes a value) or fp32 (four); exact.
std::vector<float> FloatsFromBf16(absl::string_view bytes);
std::vector<float> FloatsFromFp32(absl::string_view bytes);
// Rounded to nearest even.
std::string Bf16FromFloats(absl::Span<const float> values);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_KV_ARRAYS_H_
