#include "client/cli/quantity.h"

#include <cmath>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace kvdepot::cli {
namespace {

std::string WithoutPrefix(absl::string_view prefix, absl::string_view name) {
  // A newer daemon may send a value that this program has no name for.
  if (!absl::ConsumePrefix(&name, prefix)) return "unknown";
  return absl::AsciiStrToLower(name);
}

}  // namespace

std::string BytesText(uint64_t bytes) {
  constexpr absl::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrCat(NumberText(value), " ", kUnits[unit]);
}

std::string RateText(double bytes_per_second) {
  return absl::StrCat(NumberText(bytes_per_second / 1e6), " MB/s");
}

std::string DurationText(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (seconds < 1e-3) return absl::StrCat(NumberText(seconds * 1e6), " us");
  if (seconds < 1) return absl::StrCat(NumberText(seconds * 1e3), " ms");
  return absl::StrCat(NumberText(seconds), " s");
}

std::string NumberText(double value) {
  // %g would switch to exponents from 1000 on.
  if (std::abs(value) >= 100) return absl::StrFormat("%.0f", value);
  return absl::StrFormat("%.3g", value);
}

std::string CountText(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (int at = static_cast<int>(text.size()) - 3; at > 0; at -= 3) text.insert(at, ",");
  return text;
}

std::string EnumText(v1::Profile profile) {
  return WithoutPrefix("PROFILE_", v1::Profile_Name(profile));
}
std::string EnumText(v1::Codec codec) { return WithoutPrefix("CODEC_", v1::Codec_Name(codec)); }
std::string EnumText(v1::Dtype dtype) { return WithoutPrefix("DTYPE_", v1::Dtype_Name(dtype)); }
std::string EnumText(v1::PackKvRepacking repacking) {
  return WithoutPrefix("PACK_KV_REPACKING_", v1::PackKvRepacking_Name(repacking));
}

}  // namespace kvdepot::cli
