// Numbers with units, as people read them.
#ifndef KVDEPOT_CLIENT_CLI_QUANTITY_H_
#define KVDEPOT_CLIENT_CLI_QUANTITY_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "kvdepot/v1/session.pb.h"

namespace kvdepot::cli {

// "0 B", "1.5 KiB", "12 GiB".
std::string BytesText(uint64_t bytes);
// "123 MB/s": decimal, as rates are.
std::string RateText(double bytes_per_second);
// "812 us", "1.32 ms", "2.5 s".
std::string DurationText(absl::Duration duration);
// Three significant digits.
std::string NumberText(double value);
// "4,096".
std::string CountText(uint64_t count);
// "compact" for PROFILE_COMPACT: an enumeration's value without its common prefix, in lower case.
std::string EnumText(v1::Profile profile);
std::string EnumText(v1::Codec codec);
std::string EnumText(v1::Dtype dtype);
std::string EnumText(v1::PackKvRepacking repacking);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_QUANTITY_H_
