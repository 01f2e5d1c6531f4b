#include "client/codec_bench/codec_setting.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace kvdepot {
namespace {

constexpr const char* kProfileNames[kProfileCount] = {"tiny", "compact", "balanced", "fine"};
// Of K; V has twice as much, as in the paper's 0.1 and 0.2. The finest are for keys with bias
// channels, whose range sets every token's step.
constexpr float kRelativeScales[] = {0.2f, 0.1f, 0.05f, 0.025f, 0.0125f, 0.00625f};
// Of K and of V where values are normalised.
constexpr float kNormalizedScales[] = {1.6f, 1.2f, 0.8f, 0.5f, 0.3f, 0.15f};
constexpr int kKiviBits[] = {2, 4};

void AddPlanes(const std::string& codec, PlanesSetting::Calibration calibration,
               std::vector<CodecSetting>* settings) {
  for (int profile = 0; profile < kProfileCount; ++profile) {
    settings->push_back(
        {codec, kProfileNames[profile], PlanesSetting{static_cast<Profile>(profile), calibration}});
  }
}

void AddPackkv(const std::string& codec, packkv::Repacking repacking,
               std::vector<CodecSetting>* settings) {
  for (const float scale : kRelativeScales) {
    packkv::Options options;
    options.k_relative_scale = scale;
    options.v_relative_scale = 2 * scale;
    options.repacking = repacking;
    settings->push_back(
        {codec, absl::StrCat(scale, "/", 2 * scale), PackkvSetting{options, false}});
  }
}

// Repacked the best way.
void AddNormalized(const std::string& codec, bool calibrated, std::vector<CodecSetting>* settings) {
  for (const float scale : kNormalizedScales) {
    packkv::Options options = packkv::DefaultOptions(/*normalize=*/true);
    options.k_relative_scale = options.v_relative_scale = scale;
    options.repacking = packkv::Repacking::kGreedy;
    settings->push_back({codec, absl::StrCat(scale), PackkvSetting{options, calibrated}});
  }
}

}  // namespace

std::vector<CodecSetting> AllCodecSettings(bool has_calibration) {
  std::vector<CodecSetting> settings = {{"raw", "exact", RawSetting{}}};
  AddPlanes("planes", PlanesSetting::Calibration::kOwn, &settings);
  AddPlanes("planes-queries", PlanesSetting::Calibration::kOwnWithQueries, &settings);
  if (has_calibration) {
    AddPlanes("planes-calibrated", PlanesSetting::Calibration::kFile, &settings);
  }
  AddPackkv("packkv-none", packkv::Repacking::kNone, &settings);
  AddPackkv("packkv-median", packkv::Repacking::kMedian, &settings);
  AddPackkv("packkv-greedy", packkv::Repacking::kGreedy, &settings);
  AddNormalized("packkv-normalize", false, &settings);
  if (has_calibration) AddNormalized("packkv-normalize-calibrated", true, &settings);
  for (const int bits : kKiviBits) {
    settings.push_back({"kivi", absl::StrCat(bits, "-bit"), KiviSetting{bits}});
  }
  return settings;
}

absl::StatusOr<std::vector<CodecSetting>> SelectCodecSettings(absl::string_view codecs,
                                                              bool has_calibration) {
  const std::vector<CodecSetting> all = AllCodecSettings(has_calibration);
  if (codecs.empty()) return all;
  std::set<std::string> known;
  for (const CodecSetting& setting : all) known.insert(setting.codec);
  const std::set<std::string> wanted = absl::StrSplit(codecs, ',');
  for (const std::string& codec : wanted) {
    if (known.count(codec) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("codecs: '", codec, "', must be of ", absl::StrJoin(known, ", "),
                       has_calibration ? "" : " (more with --calibration)"));
    }
  }
  std::vector<CodecSetting> selected;
  std::copy_if(all.begin(), all.end(), std::back_inserter(selected),
               [&](const CodecSetting& setting) { return wanted.count(setting.codec) > 0; });
  return selected;
}

}  // namespace kvdepot
