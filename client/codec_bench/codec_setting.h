// What `kvdepot bench codec` tries: codecs, each at several settings.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_CODEC_SETTING_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_CODEC_SETTING_H_

#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gpu/packkv/options.h"
#include "gpu/shape.h"

namespace kvdepot {

struct RawSetting {};

struct PlanesSetting {
  // Of a session without a calibration of its model, without and with its queries' second moments,
  // and of one with.
  enum class Calibration { kOwn, kOwnWithQueries, kFile };
  Profile profile = Profile::kCompact;
  Calibration calibration = Calibration::kOwn;
};

struct PackkvSetting {
  packkv::Options options;
  bool calibrated = false;  // The calibration's weights of K's channels; with `normalize` alone.
};

// kivi_reference.h.
struct KiviSetting {
  int bits = 0;
};

struct CodecSetting {
  std::string codec;    // One curve of the plot: "planes", "packkv-greedy", ...
  std::string profile;  // A point on it: "compact", "0.1/0.2", "2-bit".
  std::variant<RawSetting, PlanesSetting, PackkvSetting, KiviSetting> setting;
};

// All of them. Those that are named so that they end in -calibrated only if there is a calibration.
std::vector<CodecSetting> AllCodecSettings(bool has_calibration);

// Those of the codecs that `codecs` names, with commas between; all if it is empty.
// INVALID_ARGUMENT naming a codec that there is not.
absl::StatusOr<std::vector<CodecSetting>> SelectCodecSettings(absl::string_view codecs,
                                                              bool has_calibration);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_CODEC_SETTING_H_
