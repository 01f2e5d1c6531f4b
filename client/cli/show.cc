// kvdepot show SESSION: everything that the daemon says about one session.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/cli/session_facts.h"
#include "client/table.h"

namespace kvdepot::cli {
namespace {

std::string TimeText(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(time.seconds()),
                          absl::UTCTimeZone());
}

// Where channel orders and widths come from.
std::string CalibrationText(const v1::Session& session,
                            const std::vector<v1::CalibrationInfo>& calibrations) {
  if (session.codec() == v1::CODEC_RAW) return "none: raw stores exact values";
  if (session.codec() == v1::CODEC_PACKKV && session.calibration().empty())
    return "none: packkv measures each token";
  if (session.calibration().empty()) return "its own, made from its first sealed segment";
  for (const v1::CalibrationInfo& info : calibrations) {
    if (info.hash() != session.calibration()) continue;
    return absl::StrCat(info.hash().substr(0, 12), " (", info.model(), ", ",
                        info.shared() ? "from the daemon's folder" : "uploaded by this tenant",
                        ")");
  }
  return absl::StrCat(session.calibration().substr(0, 12), " (no longer listed)");
}

std::string CodecText(const v1::Session& session) {
  if (session.codec() != v1::CODEC_PACKKV) {
    return absl::StrCat(EnumText(session.codec()), ", profile ", EnumText(session.profile()));
  }
  const v1::PackKvOptions& options = session.packkv();
  return absl::StrCat(EnumText(session.codec()), options.normalize() ? ", normalised" : "",
                      ", steps of ", options.k_relative_scale(), " (K) and ",
                      options.v_relative_scale(), " (V) of a token's ",
                      options.normalize() ? "root mean square" : "range", ", packs of ",
                      options.pack_tokens(), ", repacking ", EnumText(options.repacking()));
}

std::string SessionText(const v1::Session& session,
                        const std::vector<v1::CalibrationInfo>& calibrations) {
  Table table({{""}, {""}});
  table.AddRow({"name", session.name()});
  table.AddRow({"id", session.id()});
  table.AddRow({"model", session.model()});
  table.AddRow({"tokens", absl::StrCat(CountText(session.committed_token_count()), ", of them ",
                                       CountText(session.durable_token_count()), " durable")});
  table.AddRow({"stored", absl::StrCat(BytesText(session.stored_bytes()), " for ",
                                       BytesText(session.logical_bytes()), " of ",
                                       EnumText(session.dtype()))});
  table.AddRow({"bits per value",
                absl::StrFormat("%.3f all in, ratio %.2f", BitsPerValue(session), Ratio(session))});
  table.AddRow({"codec", CodecText(session)});
  table.AddRow({"calibration", CalibrationText(session, calibrations)});
  table.AddRow({"generation", absl::StrCat(session.generation())});
  table.AddRow({"created", TimeText(session.create_time())});
  table.AddRow({"expires", session.has_expire_time() ? TimeText(session.expire_time()) : "never"});
  return table.ToString();
}

std::string LayersText(const v1::Session& session) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"LAYER", kRight},
               {"KV HEADS", kRight},
               {"QUERY HEADS", kRight},
               {"HEAD DIM", kRight},
               {"WINDOW", kRight},
               {"TOKENS", kRight},
               {"SEALED TO", kRight}});
  for (int i = 0; i < session.layers_size() && i < session.layer_states_size(); ++i) {
    const v1::LayerShape& shape = session.layers(i);
    const v1::LayerState& state = session.layer_states(i);
    table.AddRow({absl::StrCat(i), absl::StrCat(shape.kv_heads()),
                  absl::StrCat(shape.query_heads()), absl::StrCat(shape.head_dim()),
                  shape.sliding_window() == 0 ? "-" : CountText(shape.sliding_window()),
                  CountText(state.token_count()), CountText(state.sealed_end())});
  }
  return table.ToString();
}

}  // namespace

absl::Status RunShow(const Arguments& arguments) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::Session> session = FindSession(**client, arguments[0]);
  if (!session.ok()) return session.status();
  if (WantsJson()) {
    PrintJson(*session);
    return absl::OkStatus();
  }
  const absl::StatusOr<std::vector<v1::CalibrationInfo>> calibrations =
      (*client)->ListCalibrations(Deadline());
  if (!calibrations.ok()) return calibrations.status();
  std::fputs(SessionText(*session, *calibrations).c_str(), stdout);
  std::printf("\n%s", LayersText(*session).c_str());
  if (session->codec() == v1::CODEC_PLANES && session->calibration().empty()) {
    std::fputs(
        "\nwarning: this session made its own calibration, which costs about twice the error of a "
        "good one.\nUpload one of its model (PutCalibration) and name it in CreateSession.\n",
        stdout);
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
