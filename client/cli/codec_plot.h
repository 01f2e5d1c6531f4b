// Draws a CodecReport by plot_codecs.py, which is compiled in, with the machine's own Python and
// matplotlib.
#ifndef KVDEPOT_CLIENT_CLI_CODEC_PLOT_H_
#define KVDEPOT_CLIENT_CLI_CODEC_PLOT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/struct.pb.h"

namespace kvdepot::cli {

// A Python 3 that has matplotlib. FAILED_PRECONDITION saying what to install.
absl::StatusOr<std::string> FindPlottingPython();

// INVALID_ARGUMENT: no file can be made at `path`. INTERNAL: the script failed; standard error has
// its reason.
absl::Status CheckWritable(const std::string& path);
absl::Status PlotCodecs(const std::string& python, const google::protobuf::Struct& report,
                        const std::string& path);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_CODEC_PLOT_H_
