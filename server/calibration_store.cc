#include "server/calibration_store.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gpu/backend.h"
#include "gpu/calibration_bytes.h"

namespace kvdepot {
namespace {

constexpr size_t kHashDigits = 64;

bool IsHash(const std::string& hash) {
  return hash.size() == kHashDigits && std::all_of(hash.begin(), hash.end(), [](char c) {
           return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

absl::Status CheckWeights(const TensorCalibration& k, absl::string_view head) {
  const std::vector<float>& weights = k.channel_weights;
  const std::string field = absl::StrCat(head, ".k.channel_weights");
  if (!weights.empty() && weights.size() != k.channel_order.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": ", weights.size(), " entries, must be none or ", k.channel_order.size()));
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i]) || weights[i] < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, "[", i, "]: ", weights[i], ", must be finite and at least 0"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayer(const std::vector<HeadCalibration>& heads, const LayerShape& shape,
                        absl::string_view layer) {
  if (shape.head_dim != 64 && shape.head_dim != 128 && shape.head_dim != 256) {
    return absl::InvalidArgumentError(absl::StrCat(
        layer, ".heads[0].k.channel_order: ", shape.head_dim, " entries, must be 64, 128 or 256"));
  }
  for (size_t h = 0; h < heads.size(); ++h) {
    const std::string head = absl::StrCat(layer, ".heads[", h, "]");
    absl::Status status = CheckWeights(heads[h].k, head);
    if (!status.ok()) return status;
    if (!heads[h].v.channel_weights.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(head, ".v.channel_weights: ", heads[h].v.channel_weights.size(),
                       " entries, must be none"));
    }
  }
  return absl::OkStatus();
}

LayerCalibration LayoutOf(const std::vector<HeadCalibration>& heads, const std::string& hash,
                          int profile) {
  LayerCalibration layout;
  const std::string digest = absl::HexStringToBytes(hash);
  std::copy_n(digest.begin(), layout.hash_prefix.size(), layout.hash_prefix.begin());
  const auto tensor = [profile](const TensorCalibration& from) {
    return TensorLayout{from.channel_order, from.patterns[static_cast<size_t>(profile)]};
  };
  std::vector<float>& weights = layout.k_channel_weights;
  for (const HeadCalibration& head : heads) {
    layout.heads.push_back({tensor(head.k), tensor(head.v)});
    weights.insert(weights.end(), head.k.channel_weights.begin(), head.k.channel_weights.end());
    weights.resize(layout.heads.size() * head.k.channel_order.size());
  }
  return layout;
}

}  // namespace

CalibrationStore::CalibrationStore(int calibrations_per_tenant_max)
    : calibrations_per_tenant_max_(static_cast<size_t>(calibrations_per_tenant_max)) {}

absl::StatusOr<CalibrationStore::Entry> CalibrationStore::MakeEntry(
    const Calibration& calibration) {
  if (!IsHash(calibration.hash)) {
    return absl::InvalidArgumentError(absl::StrCat("hash: ", calibration.hash.size(),
                                                   " characters, must be 64 hexadecimal digits"));
  }
  Entry entry;
  entry.summary = {calibration.hash, calibration.model, calibration.description,
                   static_cast<int>(calibration.layers.size()), false};
  std::array<ModelLayout, kProfileCount> layouts;
  for (size_t i = 0; i < calibration.layers.size(); ++i) {
    const std::vector<HeadCalibration>& heads = calibration.layers[i];
    const std::string layer = absl::StrCat("layers[", i, "]");
    if (heads.empty()) return absl::InvalidArgumentError(layer + ".heads: 0, must be at least 1");
    LayerShape shape;
    shape.kv_heads = shape.query_heads = static_cast<int>(heads.size());
    shape.head_dim = static_cast<int>(heads[0].k.channel_order.size());
    absl::Status status = CheckLayer(heads, shape, layer);
    for (int profile = 0; profile < kProfileCount && status.ok(); ++profile) {
      layouts[static_cast<size_t>(profile)].push_back(LayoutOf(heads, calibration.hash, profile));
      status = ValidateLayerCalibration(shape, layouts[static_cast<size_t>(profile)].back());
      if (!status.ok()) {
        status = absl::InvalidArgumentError(absl::StrCat(layer, ".", status.message()));
      }
    }
    if (!status.ok()) return status;
    entry.shapes.push_back(shape);
  }
  for (size_t profile = 0; profile < layouts.size(); ++profile) {
    entry.layouts[profile] = std::make_shared<const ModelLayout>(std::move(layouts[profile]));
  }
  return entry;
}

absl::Status CalibrationStore::AddShared(const Calibration& calibration) {
  absl::StatusOr<Entry> entry = MakeEntry(calibration);
  if (!entry.ok()) return entry.status();
  entry->summary.shared = true;
  MutexLock lock(mu_);
  shared_.emplace(calibration.hash, *std::move(entry));
  return absl::OkStatus();
}

absl::Status CalibrationStore::Put(const std::string& tenant, const Calibration& calibration) {
  absl::StatusOr<Entry> entry = MakeEntry(calibration);
  if (!entry.ok()) return entry.status();
  MutexLock lock(mu_);
  if (FindEntry(tenant, calibration.hash) != nullptr) return absl::OkStatus();
  EntriesByHash& own = by_tenant_[tenant];
  if (own.size() >= calibrations_per_tenant_max_) {
    return absl::ResourceExhaustedError(absl::StrCat("calibrations_per_tenant_max: ", own.size(),
                                                     " of ", calibrations_per_tenant_max_,
                                                     " are stored"));
  }
  own.emplace(calibration.hash, *std::move(entry));
  return absl::OkStatus();
}

uint64_t CalibrationStore::BytesOf(const Calibration& calibration) {
  uint64_t bytes = calibration.model.size() + calibration.description.size();
  for (const std::vector<HeadCalibration>& heads : calibration.layers) {
    const size_t head_dim = heads.empty() ? 0 : heads[0].k.channel_order.size();
    bytes += sizeof(LayerShape) + kProfileCount * (CalibrationBytes(heads.size(), head_dim) +
                                                   heads.size() * head_dim * sizeof(float));
  }
  return bytes;
}

bool CalibrationStore::Has(const std::string& tenant, const std::string& hash) const {
  MutexLock lock(mu_);
  return FindEntry(tenant, hash) != nullptr;
}

std::vector<CalibrationSummary> CalibrationStore::List(const std::string& tenant) const {
  MutexLock lock(mu_);
  std::map<std::string, CalibrationSummary> by_hash;
  for (const auto& [hash, entry] : shared_) by_hash.emplace(hash, entry.summary);
  const auto own = by_tenant_.find(tenant);
  if (own != by_tenant_.end()) {
    for (const auto& [hash, entry] : own->second) by_hash.emplace(hash, entry.summary);
  }
  std::vector<CalibrationSummary> summaries;
  summaries.reserve(by_hash.size());
  for (auto& [hash, summary] : by_hash) summaries.push_back(std::move(summary));
  return summaries;
}

const CalibrationStore::Entry* CalibrationStore::FindEntry(const std::string& tenant,
                                                           const std::string& hash) const {
  const auto shared = shared_.find(hash);
  if (shared != shared_.end()) return &shared->second;
  const auto own = by_tenant_.find(tenant);
  if (own == by_tenant_.end()) return nullptr;
  const auto found = own->second.find(hash);
  return found == own->second.end() ? nullptr : &found->second;
}

absl::StatusOr<std::shared_ptr<const ModelLayout>> CalibrationStore::Find(
    const std::string& tenant, const std::string& hash, Profile profile,
    absl::Span<const LayerShape> layers) const {
  MutexLock lock(mu_);
  const Entry* entry = FindEntry(tenant, hash);
  if (entry == nullptr)
    return absl::NotFoundError(absl::StrCat("calibration: ", hash, ", unknown"));
  if (entry->shapes.size() != layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("layers: ", layers.size(), " entries, must be ",
                                                   entry->shapes.size(), " with calibration ",
                                                   hash));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerShape& known = entry->shapes[i];
    if (layers[i].kv_heads != known.kv_heads) {
      return absl::InvalidArgumentError(
          absl::StrCat("layers[", i, "].kv_heads: ", layers[i].kv_heads, ", must be ",
                       known.kv_heads, " with calibration ", hash));
    }
    if (layers[i].head_dim != known.head_dim) {
      return absl::InvalidArgumentError(
          absl::StrCat("layers[", i, "].head_dim: ", layers[i].head_dim, ", must be ",
                       known.head_dim, " with calibration ", hash));
    }
  }
  return entry->layouts[static_cast<size_t>(profile)];
}

}  // namespace kvdepot
