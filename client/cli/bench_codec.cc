// kvdepot bench codec: what every codec and profile takes and costs on a dump of a model's keys,
// values and queries. Runs on a backend of its own; no daemon is asked.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/types/optional.h"
#include "client/cli/codec_plot.h"
#include "client/cli/codec_report.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/codec_bench/calibration_file.h"
#include "client/codec_bench/codec_setting.h"
#include "client/codec_bench/codec_trial.h"
#include "client/codec_bench/kv_dump.h"
#include "gpu/backend_factory.h"
#include "gpu/device_name.h"

ABSL_FLAG(std::string, bench_codec_dump, "",
          "Safetensors file with layers.N.k, .v and, if it has queries, .q in bf16, fp16 or fp32.");
ABSL_FLAG(bool, bench_codec_synthetic, false,
          "Random numbers instead of a dump: to try the command; says nothing about accuracy.");
ABSL_FLAG(std::string, bench_codec_layers, "",
          "Numbers of the dump's layers, with commas between. Empty: all.");
ABSL_FLAG(int, bench_codec_tokens, 0,
          "How many tokens, from the first on. 0: all of the dump, 4096 synthetic ones.");
ABSL_FLAG(int, bench_codec_queries, 64, "Queries of each layer that errors are measured with.");
ABSL_FLAG(std::string, bench_codec_codecs, "", "Codecs, with commas between. Empty: all.");
ABSL_FLAG(std::string, bench_codec_calibration, "",
          "Calibration file of the model, for codecs named -calibrated.");
ABSL_FLAG(std::string, bench_codec_device, "cpu", "Where to run: auto, cpu, cuda:N or a UUID.");
ABSL_FLAG(std::string, bench_codec_plot, "",
          "Picture to draw (PNG): error against bits. Needs python3 with matplotlib.");

namespace kvdepot::cli {
namespace {

constexpr int kQueriesMax = 4096;
constexpr int kSyntheticTokens = 4096;
constexpr LayerShape kSyntheticShape{2, 8, 128, 0, 0};
constexpr double kBf16Bytes = 2;

void Progress(const std::string& text) { std::fprintf(stderr, "bench codec: %s\n", text.c_str()); }

int Threads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

absl::StatusOr<std::vector<int>> LayersFromFlag() {
  std::vector<int> layers;
  for (const absl::string_view word :
       absl::StrSplit(absl::GetFlag(FLAGS_bench_codec_layers), ',', absl::SkipEmpty())) {
    int layer = 0;
    if (!absl::SimpleAtoi(word, &layer) || layer < 0) {
      return UsageError(absl::StrCat("--layers: '", word, "', must be numbers from 0 on"));
    }
    layers.push_back(layer);
  }
  return layers;
}

absl::Status CheckFlags() {
  const bool synthetic = absl::GetFlag(FLAGS_bench_codec_synthetic);
  if (synthetic == !absl::GetFlag(FLAGS_bench_codec_dump).empty()) {
    return UsageError("bench codec needs either --dump or --synthetic");
  }
  if (synthetic && !absl::GetFlag(FLAGS_bench_codec_layers).empty()) {
    return UsageError("--layers: there is one synthetic layer; choose layers of a --dump");
  }
  if (synthetic && !absl::GetFlag(FLAGS_bench_codec_calibration).empty()) {
    return UsageError("--calibration: is of a model; synthetic numbers have none");
  }
  const int tokens = absl::GetFlag(FLAGS_bench_codec_tokens);
  if (tokens < 0 || (tokens > 0 && tokens < kPromptTokensMin)) {
    return UsageError(absl::StrCat("--tokens: ", tokens, ", must be 0 or at least ",
                                   kPromptTokensMin, ", from which on a block is sealed"));
  }
  const int queries = absl::GetFlag(FLAGS_bench_codec_queries);
  if (queries < 1 || queries > kQueriesMax) {
    return UsageError(absl::StrCat("--queries: ", queries, ", must be 1..", kQueriesMax));
  }
  const std::string device = absl::GetFlag(FLAGS_bench_codec_device);
  if (!IsDeviceName(device)) {
    return UsageError(absl::StrCat("--device: '", device, "', must be ", kDeviceNames));
  }
  return absl::OkStatus();
}

absl::StatusOr<KvDump> DumpFromFlags() {
  const int tokens = absl::GetFlag(FLAGS_bench_codec_tokens);
  if (absl::GetFlag(FLAGS_bench_codec_synthetic)) {
    return MakeSyntheticDump(kSyntheticShape, tokens == 0 ? kSyntheticTokens : tokens,
                             absl::GetFlag(FLAGS_bench_codec_queries));
  }
  const absl::StatusOr<std::vector<int>> layers = LayersFromFlag();
  if (!layers.ok()) return layers.status();
  const std::string path = absl::GetFlag(FLAGS_bench_codec_dump);
  Progress(absl::StrCat("reading ", path));
  absl::StatusOr<KvDump> dump = LoadKvDump(path, {*layers, tokens});
  if (!dump.ok()) return dump.status();
  for (const DumpLayer& layer : dump->layers) {
    if (layer.kv.token_count < kPromptTokensMin) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": layers.", layer.number, ".k has ",
                                                     layer.kv.token_count, " tokens, at least ",
                                                     kPromptTokensMin, " are needed"));
    }
    if (layer.queries_are_drawn) {
      Progress(absl::StrCat("layer ", layer.number,
                            " comes without queries: drawn ones say little about accuracy"));
    }
  }
  return dump;
}

// Those that the backend can run on every layer. The first one's error if that is none.
absl::StatusOr<std::vector<CodecSetting>> SupportedSettings(
    const Backend& backend, const KvDump& dump, const std::vector<CodecSetting>& settings) {
  std::vector<CodecSetting> supported;
  absl::Status first_error;
  for (const CodecSetting& setting : settings) {
    absl::Status status;
    for (const DumpLayer& layer : dump.layers) {
      status.Update(CheckSupport(setting, layer.shape, layer.dtype, backend));
    }
    if (status.ok()) {
      supported.push_back(setting);
      continue;
    }
    Progress(absl::StrCat(setting.codec, " ", setting.profile, " is left out: ", status.message()));
    first_error.Update(status);
  }
  if (supported.empty()) return first_error;
  return supported;
}

// Fills in report->rows; their settings are there.
absl::Status MeasureLayer(Backend* backend, const KvDump& dump, const DumpLayer& dump_layer,
                          const absl::optional<v1::Calibration>& calibration, WorkerPool* pool,
                          CodecReport* report) {
  const std::string prefix = absl::StrCat("layer ", dump_layer.number, ": ");
  ProfileCalibrations calibrations;
  if (calibration) {
    absl::StatusOr<ProfileCalibrations> found = CalibrationsOf(*calibration, dump, dump_layer);
    if (!found.ok()) return found.status();
    calibrations = *std::move(found);
  }
  const absl::StatusOr<std::unique_ptr<BenchLayer>> layer =
      BenchLayer::Create(backend, dump_layer, absl::GetFlag(FLAGS_bench_codec_queries));
  if (!layer.ok()) return layer.status();
  Progress(absl::StrCat(prefix, "exact attention of ", (*layer)->queries().size(), " queries"));
  const std::vector<double> exact = ExactOutputs(**layer, pool);
  for (CodecRow& row : report->rows) {
    Progress(absl::StrCat(prefix, row.setting.codec, " ", row.setting.profile));
    absl::StatusOr<TrialFigures> figures = TryCodec(row.setting, **layer, &calibrations, exact);
    if (!figures.ok()) return figures.status();
    row.layers.push_back(*std::move(figures));
  }
  report->layers.push_back(dump_layer.number);
  report->queries = static_cast<int>((*layer)->queries().size());
  report->queries_are_drawn |= dump_layer.queries_are_drawn;
  report->sealed_tokens = (*layer)->layout().sealed_tokens();
  report->bf16_bytes +=
      2 * kBf16Bytes * static_cast<double>(dump_layer.shape.row_values()) * report->sealed_tokens;
  return absl::OkStatus();
}

absl::StatusOr<CodecReport> Measure(Backend* backend, const KvDump& dump,
                                    const std::vector<CodecSetting>& settings,
                                    const absl::optional<v1::Calibration>& calibration) {
  CodecReport report;
  report.model = dump.model;
  report.backend = absl::StrCat(backend->name(), " (", backend->device(), ")");
  report.tokens = dump.layers.front().kv.token_count;
  report.shape = dump.layers.front().shape;
  for (const CodecSetting& setting : settings) report.rows.push_back({setting, {}});
  WorkerPool pool(Threads());
  for (const DumpLayer& layer : dump.layers) {
    const absl::Status status = MeasureLayer(backend, dump, layer, calibration, &pool, &report);
    if (!status.ok()) return status;
  }
  return report;
}

absl::StatusOr<absl::optional<v1::Calibration>> CalibrationFromFlag() {
  const std::string path = absl::GetFlag(FLAGS_bench_codec_calibration);
  if (path.empty()) return absl::nullopt;
  const absl::StatusOr<std::string> file = ReadFile(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<v1::Calibration> calibration = ParseCalibration(*file);
  if (!calibration.ok()) return calibration.status();
  return absl::make_optional(*std::move(calibration));
}

}  // namespace

absl::Status RunBenchCodec(const Arguments&) {
  absl::Status status = CheckFlags();
  if (!status.ok()) return status;
  const absl::StatusOr<absl::optional<v1::Calibration>> calibration = CalibrationFromFlag();
  if (!calibration.ok()) return calibration.status();
  const absl::StatusOr<std::vector<CodecSetting>> settings =
      SelectCodecSettings(absl::GetFlag(FLAGS_bench_codec_codecs), calibration->has_value());
  if (!settings.ok()) return UsageError(absl::StrCat("--", settings.status().message()));
  // What would fail after minutes of measuring fails now.
  const std::string plot = absl::GetFlag(FLAGS_bench_codec_plot);
  std::string python;
  if (!plot.empty()) {
    status = CheckWritable(plot);
    if (!status.ok()) return status;
    absl::StatusOr<std::string> found = FindPlottingPython();
    if (!found.ok()) return found.status();
    python = *std::move(found);
  }
  const absl::StatusOr<KvDump> dump = DumpFromFlags();
  if (!dump.ok()) return dump.status();
  BackendOptions options;
  options.device = absl::GetFlag(FLAGS_bench_codec_device);
  options.threads = Threads();
  const absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(options);
  if (!backend.ok()) return backend.status();

  const absl::StatusOr<std::vector<CodecSetting>> supported =
      SupportedSettings(**backend, *dump, *settings);
  if (!supported.ok()) return supported.status();
  const absl::StatusOr<CodecReport> report =
      Measure(backend->get(), *dump, *supported, *calibration);
  if (!report.ok()) return report.status();
  const google::protobuf::Struct json = CodecJson(*report);
  if (WantsJson()) {
    PrintJson(json);
  } else {
    std::fputs(CodecText(*report).c_str(), stdout);
  }
  return plot.empty() ? absl::OkStatus() : PlotCodecs(python, json, plot);
}

}  // namespace kvdepot::cli
