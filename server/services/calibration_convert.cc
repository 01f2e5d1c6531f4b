#include "server/services/calibration_convert.h"

#include <openssl/sha.h>

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvdepot/v1/calibration.pb.h"
#include "server/services/field_error.h"

namespace kvdepot {
namespace {

constexpr uint32_t kVersion = 0;
// More layers and heads than any model has; the message's size is bounded before.
constexpr int kLayersMax = 1024;
constexpr int kHeadsMax = 1024;
// ListCalibrations repeats these texts for every calibration that a tenant has.
constexpr size_t kTextBytesMax = 1024;

std::string Sha256Hex(absl::string_view bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

absl::Status CheckText(absl::string_view field, absl::string_view text) {
  if (text.size() <= kTextBytesMax) return absl::OkStatus();
  return FieldError(field, absl::StrCat(text.size(), " bytes"),
                    absl::StrCat("at most ", kTextBytesMax));
}

absl::StatusOr<TensorCalibration> ReadTensor(const v1::TensorCalibration& from) {
  const size_t head_dim = from.channel_order().size();
  if (head_dim != 64 && head_dim != 128 && head_dim != 256) {
    return FieldError("channel_order", absl::StrCat(head_dim, " bytes"), "64, 128 or 256");
  }
  if (from.patterns().size() != kProfileCount) {
    return FieldError("patterns", absl::StrCat(from.patterns().size(), " bytes"), kProfileCount);
  }
  TensorCalibration tensor;
  tensor.channel_order.assign(from.channel_order().begin(), from.channel_order().end());
  std::copy(from.patterns().begin(), from.patterns().end(), tensor.patterns.begin());
  for (int i = 0; i < from.channel_weights_size(); ++i) {
    const float weight = from.channel_weights(i);
    if (!std::isfinite(weight) || weight < 0) {
      return FieldError(absl::StrCat("channel_weights[", i, "]"), weight, "finite and at least 0");
    }
  }
  tensor.channel_weights.assign(from.channel_weights().begin(), from.channel_weights().end());
  return tensor;
}

absl::StatusOr<HeadCalibration> ReadHead(const v1::HeadCalibration& from) {
  absl::StatusOr<TensorCalibration> k = ReadTensor(from.k());
  if (!k.ok()) return Inside("k", k.status());
  absl::StatusOr<TensorCalibration> v = ReadTensor(from.v());
  if (!v.ok()) return Inside("v", v.status());
  const size_t head_dim = k->channel_order.size();
  if (v->channel_order.size() != head_dim) {
    return FieldError("v.channel_order", absl::StrCat(v->channel_order.size(), " bytes"),
                      absl::StrCat(head_dim, " as k.channel_order"));
  }
  if (!k->channel_weights.empty() && k->channel_weights.size() != head_dim) {
    return FieldError("k.channel_weights", absl::StrCat(k->channel_weights.size(), " entries"),
                      absl::StrCat("0 or ", head_dim));
  }
  if (!v->channel_weights.empty()) {
    return FieldError("v.channel_weights", absl::StrCat(v->channel_weights.size(), " entries"), 0);
  }
  return HeadCalibration{*std::move(k), *std::move(v)};
}

absl::StatusOr<std::vector<HeadCalibration>> ReadLayer(const v1::LayerCalibration& from) {
  if (from.heads_size() < 1 || from.heads_size() > kHeadsMax) {
    return FieldError("heads", absl::StrCat(from.heads_size(), " heads"),
                      absl::StrCat("1..", kHeadsMax));
  }
  std::vector<HeadCalibration> heads;
  heads.reserve(static_cast<size_t>(from.heads_size()));
  for (int i = 0; i < from.heads_size(); ++i) {
    absl::StatusOr<HeadCalibration> head = ReadHead(from.heads(i));
    if (!head.ok()) return Inside(absl::StrCat("heads[", i, "]"), head.status());
    heads.push_back(*std::move(head));
  }
  return heads;
}

}  // namespace

absl::StatusOr<Calibration> ParseCalibration(const std::string& file) {
  v1::Calibration proto;
  if (!proto.ParseFromString(file)) {
    return FieldError("file", absl::StrCat(file.size(), " bytes that do not parse"),
                      "a serialised kvdepot.v1.Calibration");
  }
  if (proto.version() != kVersion) return FieldError("version", proto.version(), kVersion);
  absl::Status texts = CheckText("model", proto.model());
  if (texts.ok()) texts = CheckText("description", proto.description());
  if (texts.ok()) texts = CheckText("license", proto.license());
  if (!texts.ok()) return texts;
  if (proto.layers_size() < 1 || proto.layers_size() > kLayersMax) {
    return FieldError("layers", absl::StrCat(proto.layers_size(), " layers"),
                      absl::StrCat("1..", kLayersMax));
  }
  Calibration calibration;
  calibration.hash = Sha256Hex(file);
  calibration.model = proto.model();
  calibration.description = proto.description();
  calibration.license = proto.license();
  calibration.layers.reserve(static_cast<size_t>(proto.layers_size()));
  for (int i = 0; i < proto.layers_size(); ++i) {
    absl::StatusOr<std::vector<HeadCalibration>> layer = ReadLayer(proto.layers(i));
    if (!layer.ok()) return Inside(absl::StrCat("layers[", i, "]"), layer.status());
    calibration.layers.push_back(*std::move(layer));
  }
  return calibration;
}

void ToProto(const CalibrationSummary& summary, v1::CalibrationInfo* info) {
  info->set_hash(summary.hash);
  info->set_model(summary.model);
  info->set_description(summary.description);
  info->set_layer_count(static_cast<uint32_t>(summary.layer_count));
  info->set_shared(summary.shared);
}

}  // namespace kvdepot
