// Calibrations by hash: those of the daemon's folder, seen by every tenant, and each tenant's own.
#ifndef KVDEPOT_SERVER_CALIBRATION_STORE_H_
#define KVDEPOT_SERVER_CALIBRATION_STORE_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gpu/calibration.h"
#include "gpu/shape.h"
#include "server/mutex.h"

namespace kvdepot {

// The file's content (proto/kvdepot/v1/calibration.proto) as plain data.
struct TensorCalibration {
  std::vector<uint8_t> channel_order;
  std::array<uint8_t, kProfileCount> patterns{};
  std::vector<float> channel_weights;  // Keys: empty or head_dim entries. Values: empty.
};

struct HeadCalibration {
  TensorCalibration k;
  TensorCalibration v;
};

struct Calibration {
  std::string hash;  // Lower-case hexadecimal SHA-256 of the file.
  std::string model;
  std::string description;
  std::string license;
  std::vector<std::vector<HeadCalibration>> layers;  // [layer][kv_head]
};

struct CalibrationSummary {
  std::string hash;
  std::string model;
  std::string description;
  int layer_count = 0;
  bool shared = false;
};

// One model at one profile, an entry a layer: what sessions hold on to, shared by all of them.
using ModelLayout = std::vector<LayerCalibration>;

// Thread-safe. Calibrations are never dropped.
class CalibrationStore {
 public:
  explicit CalibrationStore(int calibrations_per_tenant_max);

  // For every tenant. INVALID_ARGUMENT names the first entry of `calibration` that makes no sense.
  // Storing the same hash again changes nothing.
  absl::Status AddShared(const Calibration& calibration);

  // For `tenant` alone. Errors as AddShared, and RESOURCE_EXHAUSTED once the tenant has
  // calibrations_per_tenant_max.
  absl::Status Put(const std::string& tenant, const Calibration& calibration);

  // What a stored calibration takes, all profiles of it.
  static uint64_t BytesOf(const Calibration& calibration);

  // Whether `tenant` may name it.
  bool Has(const std::string& tenant, const std::string& hash) const;

  // Shared ones and the tenant's own, in order of hash.
  std::vector<CalibrationSummary> List(const std::string& tenant) const;

  // NOT_FOUND: no such hash that `tenant` may name. INVALID_ARGUMENT: layers, KV heads or head_dim
  // differ from `layers`.
  absl::StatusOr<std::shared_ptr<const ModelLayout>> Find(
      const std::string& tenant, const std::string& hash, Profile profile,
      absl::Span<const LayerShape> layers) const;

 private:
  struct Entry {
    CalibrationSummary summary;
    std::vector<LayerShape> shapes;  // Heads and head_dim alone have meaning.
    std::array<std::shared_ptr<const ModelLayout>, kProfileCount> layouts;
  };
  using EntriesByHash = std::map<std::string, Entry>;

  static absl::StatusOr<Entry> MakeEntry(const Calibration& calibration);
  const Entry* FindEntry(const std::string& tenant, const std::string& hash) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t calibrations_per_tenant_max_;
  mutable Mutex mu_;
  EntriesByHash shared_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, EntriesByHash> by_tenant_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CALIBRATION_STORE_H_
