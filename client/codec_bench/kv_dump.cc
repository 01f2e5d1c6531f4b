#include "client/codec_bench/kv_dump.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/safetensors.h"
#include "client/synthetic_kv.h"
#include "gpu/numeric.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// Drawn for a layer that comes without.
constexpr int kDrawnQueries = 64;
constexpr uint64_t kDrawnQueriesSeed = 1;
constexpr uint64_t kSyntheticSeed = 1;

std::set<int> LayerNumbers(const Safetensors& file) {
  std::set<int> numbers;
  for (const auto& [name, tensor] : file.tensors()) {
    const std::vector<std::string> parts = absl::StrSplit(name, '.');
    int number = 0;
    if (parts.size() == 3 && parts[0] == "layers" && absl::SimpleAtoi(parts[1], &number)) {
      numbers.insert(number);
    }
  }
  return numbers;
}

absl::StatusOr<DType> DTypeOf(const std::string& name, const Tensor& tensor) {
  if (tensor.dtype == "BF16") return DType::kBf16;
  if (tensor.dtype == "F16") return DType::kFp16;
  if (tensor.dtype == "F32") return DType::kFp32;
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": dtype ", tensor.dtype, ", must be BF16, F16 or F32"));
}

std::string ShapeText(const Tensor& tensor) {
  return absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]");
}

absl::Status CheckShape(const std::string& prefix, const Tensor& k, const Tensor& v) {
  if (k.shape.size() != 3 || k.data.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        prefix, "k: shape ", ShapeText(k), ", must be [token][kv_head][channel] and not empty"));
  }
  if (v.shape != k.shape || v.dtype != k.dtype) {
    return absl::InvalidArgumentError(absl::StrCat(prefix, "v: shape ", ShapeText(v), " of ",
                                                   v.dtype, ", must be that of k, ", ShapeText(k),
                                                   " of ", k.dtype));
  }
  const uint64_t head_dim = k.shape[2];
  if (head_dim != 64 && head_dim != 128 && head_dim != 256) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, "k: head_dim ", head_dim, ", must be 64, 128 or 256"));
  }
  if (k.shape[1] > kSegmentKvHeadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, "k: ", k.shape[1], " KV heads, the limit is ", kSegmentKvHeadsMax));
  }
  return absl::OkStatus();
}

absl::Status CheckQueries(const std::string& name, const Tensor& k, const Tensor& q) {
  if (q.shape.size() != 3 || q.data.empty() || q.shape[2] != k.shape[2] || q.dtype != k.dtype) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": shape ", ShapeText(q), " of ", q.dtype,
                                                   ", must be [query][query_head][", k.shape[2],
                                                   "] of ", k.dtype, " and not empty"));
  }
  if (q.shape[1] % k.shape[1] != 0 || q.shape[1] > k.shape[1] * kQueryHeadsPerKvHeadMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", q.shape[1], " query heads, must be 1 to ", kQueryHeadsPerKvHeadMax,
                     " for each of ", k.shape[1], " KV heads"));
  }
  return absl::OkStatus();
}

// bf16 of kDrawnQueries queries, one query head a KV head: every dtype holds a bf16 of that size.
std::string DrawQueries(DType dtype, const LayerShape& shape) {
  const SyntheticKv drawn = MakeSyntheticKv(
      {0, kDrawnQueries, shape.kv_heads, shape.query_heads, shape.head_dim}, kDrawnQueriesSeed);
  if (dtype == DType::kBf16) return drawn.q;
  const std::vector<float> values = FloatsFromBf16(drawn.q);
  std::string bytes(values.size() * DTypeBytes(dtype), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = FloatToFp16(values[i]);
    if (dtype == DType::kFp16) memcpy(&bytes[2 * i], &half, sizeof(half));
    if (dtype == DType::kFp32) memcpy(&bytes[4 * i], &values[i], sizeof(float));
  }
  return bytes;
}

absl::Status CheckFinite(const std::string& name, const std::vector<float>& values) {
  const auto found =
      std::find_if(values.begin(), values.end(), [](float x) { return !(x - x == 0); });
  if (found == values.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": value ", found - values.begin(), " is ", *found, ", must be finite"));
}

absl::StatusOr<DumpLayer> LoadLayer(const Safetensors& file, int number, int token_limit) {
  const std::string prefix = absl::StrCat("layers.", number, ".");
  const absl::StatusOr<Tensor> k = file.Find(prefix + "k");
  if (!k.ok()) return k.status();
  const absl::StatusOr<Tensor> v = file.Find(prefix + "v");
  if (!v.ok()) return v.status();
  const absl::StatusOr<DType> dtype = DTypeOf(prefix + "k", *k);
  if (!dtype.ok()) return dtype.status();
  const absl::Status shape = CheckShape(prefix, *k, *v);
  if (!shape.ok()) return shape;
  const uint64_t tokens = token_limit == 0 ? k->shape[0] : static_cast<uint64_t>(token_limit);
  if (tokens > k->shape[0]) {
    return absl::OutOfRangeError(
        absl::StrCat("tokens: ", tokens, ", ", prefix, "k has ", k->shape[0]));
  }

  DumpLayer layer;
  layer.number = number;
  layer.dtype = *dtype;
  layer.shape.kv_heads = static_cast<int>(k->shape[1]);
  layer.shape.query_heads = layer.shape.kv_heads;
  layer.shape.head_dim = static_cast<int>(k->shape[2]);
  const size_t bytes = tokens * layer.shape.row_values() * DTypeBytes(*dtype);
  layer.k = std::string(k->data.substr(0, bytes));
  layer.v = std::string(v->data.substr(0, bytes));
  layer.kv = {static_cast<int>(tokens), layer.shape.kv_heads, layer.shape.head_dim,
              FloatsOf(*dtype, layer.k), FloatsOf(*dtype, layer.v)};

  const absl::StatusOr<Tensor> q = file.Find(prefix + "q");
  if (q.ok()) {
    const absl::Status status = CheckQueries(prefix + "q", *k, *q);
    if (!status.ok()) return status;
    layer.shape.query_heads = static_cast<int>(q->shape[1]);
    layer.query_count = static_cast<int>(q->shape[0]);
    layer.q = std::string(q->data);
  } else {
    layer.query_count = kDrawnQueries;
    layer.queries_are_drawn = true;
    layer.q = DrawQueries(*dtype, layer.shape);
  }
  for (const auto& [name, values] :
       {std::make_pair("k", layer.kv.k), {"v", layer.kv.v}, {"q", FloatsOf(*dtype, layer.q)}}) {
    const absl::Status finite = CheckFinite(prefix + name, values);
    if (!finite.ok()) return finite;
  }
  return layer;
}

}  // namespace

std::vector<float> FloatsOf(DType dtype, absl::string_view bytes) {
  if (dtype == DType::kBf16) return FloatsFromBf16(bytes);
  if (dtype == DType::kFp32) return FloatsFromFp32(bytes);
  std::vector<float> values(bytes.size() / sizeof(uint16_t));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    memcpy(&bits, bytes.data() + i * sizeof(bits), sizeof(bits));
    values[i] = Fp16ToFloat(bits);
  }
  return values;
}

absl::StatusOr<KvDump> LoadKvDump(const std::string& path, const DumpSelection& selection) {
  const absl::StatusOr<Safetensors> file = Safetensors::Load(path);
  if (!file.ok()) return file.status();
  const std::set<int> numbers = LayerNumbers(*file);
  if (numbers.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no tensor is named layers.N.k"));
  }
  for (const int number : selection.layers) {
    if (numbers.count(number) == 0) {
      return absl::NotFoundError(
          absl::StrCat("layers: ", number, ", ", path, " has ", absl::StrJoin(numbers, ", ")));
    }
  }
  KvDump dump;
  const auto model = file->metadata().find("model");
  dump.model = model == file->metadata().end() ? "unnamed model" : model->second;
  dump.layer_count = static_cast<int>(numbers.size());
  int place = 0;
  for (const int number : numbers) {
    const auto& wanted = selection.layers;
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), number) != wanted.end()) {
      absl::StatusOr<DumpLayer> layer = LoadLayer(*file, number, selection.tokens);
      if (!layer.ok()) {
        return absl::Status(layer.status().code(),
                            absl::StrCat(path, ": ", layer.status().message()));
      }
      layer->place = place;
      dump.layers.push_back(*std::move(layer));
    }
    ++place;
  }
  return dump;
}

KvDump MakeSyntheticDump(const LayerShape& shape, int tokens, int queries) {
  const SyntheticKv drawn = MakeSyntheticKv(
      {tokens, queries, shape.kv_heads, shape.query_heads, shape.head_dim}, kSyntheticSeed);
  DumpLayer layer;
  layer.shape = shape;
  layer.query_count = queries;
  layer.k = drawn.k;
  layer.v = drawn.v;
  layer.q = drawn.q;
  layer.kv = {tokens, shape.kv_heads, shape.head_dim, FloatsFromBf16(drawn.k),
              FloatsFromBf16(drawn.v)};
  KvDump dump;
  dump.model = "synthetic";
  dump.layer_count = 1;
  dump.layers.push_back(std::move(layer));
  return dump;
}

}  // namespace kvdepot
