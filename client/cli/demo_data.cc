#include "client/cli/demo_data.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/safetensors.h"

namespace kvdepot::cli {
namespace {

absl::StatusOr<int> FirstLayer(const Safetensors& file) {
  for (const auto& [name, tensor] : file.tensors()) {
    const std::vector<std::string> parts = absl::StrSplit(name, '.');
    int layer = 0;
    if (parts.size() == 3 && parts[0] == "layers" && absl::SimpleAtoi(parts[1], &layer)) {
      return layer;
    }
  }
  return absl::InvalidArgumentError("no tensor is named layers.N.k");
}

absl::StatusOr<Tensor> FindBf16(const Safetensors& file, const std::string& name) {
  absl::StatusOr<Tensor> tensor = file.Find(name);
  if (!tensor.ok()) return tensor;
  if (tensor->dtype != "BF16" || tensor->shape.size() != 3 || tensor->data.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is no bf16 tensor of three dimensions"));
  }
  return tensor;
}

}  // namespace

absl::string_view DemoData::QueryBytes(int query) const {
  const size_t size = q.size() / query_count;
  return absl::string_view(q).substr(query * size, size);
}

absl::StatusOr<DemoData> LoadDemoData(const std::string& path) {
  const absl::StatusOr<Safetensors> file = Safetensors::Load(path);
  if (!file.ok()) return file.status();
  const absl::StatusOr<int> layer = FirstLayer(*file);
  if (!layer.ok()) return layer.status();
  const std::string prefix = absl::StrCat("layers.", *layer, ".");
  const absl::StatusOr<Tensor> k = FindBf16(*file, prefix + "k");
  if (!k.ok()) return k.status();
  const absl::StatusOr<Tensor> v = FindBf16(*file, prefix + "v");
  if (!v.ok()) return v.status();
  const absl::StatusOr<Tensor> q = FindBf16(*file, prefix + "q");
  if (!q.ok()) return q.status();
  if (k->shape != v->shape || k->shape[2] != q->shape[2] || q->shape[1] % k->shape[1] != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": shapes of k, v and q do not agree"));
  }

  DemoData data;
  const auto model = file->metadata().find("model");
  data.model = model == file->metadata().end() ? "unnamed model" : model->second;
  data.layer = *layer;
  data.query_count = static_cast<int>(q->shape[0]);
  data.query_heads = static_cast<int>(q->shape[1]);
  data.k = std::string(k->data);
  data.v = std::string(v->data);
  data.q = std::string(q->data);
  data.kv.token_count = static_cast<int>(k->shape[0]);
  data.kv.kv_heads = static_cast<int>(k->shape[1]);
  data.kv.head_dim = static_cast<int>(k->shape[2]);
  data.kv.k = FloatsFromBf16(data.k);
  data.kv.v = FloatsFromBf16(data.v);
  return data;
}

}  // namespace kvdepot::cli
