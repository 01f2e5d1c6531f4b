#include "client/codec_bench/calibration_file.h"

#include "absl/strings/str_cat.h"
#include "gpu/backend.h"

namespace kvdepot {
namespace {

absl::StatusOr<TensorLayout> LayoutOf(const v1::TensorCalibration& tensor, int profile) {
  if (tensor.patterns().size() != kProfileCount) {
    return absl::InvalidArgumentError(absl::StrCat("patterns has ", tensor.patterns().size(),
                                                   " entries, must be ", kProfileCount));
  }
  TensorLayout layout;
  layout.order.assign(tensor.channel_order().begin(), tensor.channel_order().end());
  layout.pattern = static_cast<uint8_t>(tensor.patterns()[static_cast<size_t>(profile)]);
  return layout;
}

absl::StatusOr<LayerCalibration> LayerOf(const v1::LayerCalibration& message, int profile,
                                         const LayerShape& shape) {
  LayerCalibration calibration;
  for (const v1::HeadCalibration& head : message.heads()) {
    absl::StatusOr<TensorLayout> k = LayoutOf(head.k(), profile);
    if (!k.ok()) return k.status();
    absl::StatusOr<TensorLayout> v = LayoutOf(head.v(), profile);
    if (!v.ok()) return v.status();
    calibration.heads.push_back({*std::move(k), *std::move(v)});
    const auto& weights = head.k().channel_weights();
    if (!weights.empty() && weights.size() != shape.head_dim) {
      return absl::InvalidArgumentError(absl::StrCat("channel_weights has ", weights.size(),
                                                     " entries, head_dim is ", shape.head_dim));
    }
    std::vector<float>& all = calibration.k_channel_weights;
    all.insert(all.end(), weights.begin(), weights.end());
    // Zeros where there are none.
    all.resize(calibration.heads.size() * static_cast<size_t>(shape.head_dim));
  }
  const absl::Status fits = ValidateLayerCalibration(shape, calibration);
  if (!fits.ok()) return fits;
  return calibration;
}

}  // namespace

absl::StatusOr<v1::Calibration> ParseCalibration(absl::string_view file) {
  v1::Calibration calibration;
  if (!calibration.ParseFromArray(file.data(), static_cast<int>(file.size())) ||
      calibration.layers().empty()) {
    return absl::InvalidArgumentError("calibration: the file holds none");
  }
  return calibration;
}

absl::StatusOr<ProfileCalibrations> CalibrationsOf(const v1::Calibration& calibration,
                                                   const KvDump& dump, const DumpLayer& layer) {
  const int count = calibration.layers_size();
  const int index = count == dump.layer_count ? layer.place : layer.number;
  if (index >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("calibration: layer ", layer.number, " is not among its ", count, " layers"));
  }
  ProfileCalibrations calibrations;
  for (int profile = 0; profile < kProfileCount; ++profile) {
    absl::StatusOr<LayerCalibration> made =
        LayerOf(calibration.layers(index), profile, layer.shape);
    if (!made.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("calibration: layer ", layer.number, ": ", made.status().message()));
    }
    calibrations[static_cast<size_t>(profile)] = *std::move(made);
  }
  return calibrations;
}

}  // namespace kvdepot
