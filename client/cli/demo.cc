// kvdepot demo: stores real KV of a real model, attends with the model's own queries, and compares
// with exact attention.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/demo_data.h"
#include "client/cli/demo_report.h"
#include "client/cli/http_get.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/cli/session_facts.h"
#include "client/exact_attention.h"
#include "client/kivi_reference.h"
#include "client/latency_summary.h"

ABSL_FLAG(std::string, kv, "", "Safetensors file with layers.N.k, .v and .q in bf16.");
ABSL_FLAG(std::string, calibration, "",
          "Calibration file of that layer. Empty: the session makes its own.");
ABSL_FLAG(bool, keep, false, "Leave the session in the daemon.");

namespace kvdepot::cli {
namespace {

// Queries that errors are averaged over; all of the file's are timed.
constexpr int kErrorQueries = 64;
constexpr uint64_t kErrorQueriesSeed = 1;
// Of a demo that was interrupted nothing remains for longer.
constexpr int64_t kTimeToLiveSeconds = 3600;
constexpr int kSinkTokens = 16;
constexpr int kReferenceBits = 2;
constexpr absl::string_view kShownMetrics[] = {
    "kvdepot_appended_tokens_total ", "kvdepot_session_stored_bytes{codec=\"planes\"} ",
    "kvdepot_rpc_handled_total{code=\"OK\",method=\"Attend\"} "};
constexpr double kBf16Bits = 16;

void Progress(const std::string& text) { std::fprintf(stderr, "demo: %s\n", text.c_str()); }

absl::StatusOr<v1::Session> CreateDemoSession(const Client& client, const DemoData& data) {
  v1::CreateSessionRequest request;
  request.set_name(absl::StrCat("demo-", absl::ToUnixMicros(absl::Now())));
  request.set_model(absl::StrCat(data.model, ", layer ", data.layer));
  v1::LayerShape* shape = request.add_layers();
  shape->set_kv_heads(data.kv.kv_heads);
  shape->set_query_heads(data.query_heads);
  shape->set_head_dim(data.kv.head_dim);
  request.set_dtype(v1::DTYPE_BF16);
  request.set_profile(v1::PROFILE_COMPACT);
  request.mutable_time_to_live()->set_seconds(kTimeToLiveSeconds);
  const std::string calibration_path = absl::GetFlag(FLAGS_calibration);
  if (!calibration_path.empty()) {
    const absl::StatusOr<std::string> file = ReadFile(calibration_path);
    if (!file.ok()) return file.status();
    absl::StatusOr<std::string> hash = client.PutCalibration(*file, Deadline());
    if (!hash.ok()) return hash.status();
    request.set_calibration(*hash);
  }
  absl::StatusOr<v1::CreateSessionResponse> created = client.CreateSession(request, Deadline());
  if (!created.ok()) return created.status();
  return std::move(*created->mutable_session());
}

absl::StatusOr<double> AppendBytesPerSecond(const Client& client, const v1::Session& session,
                                            const DemoData& data) {
  const LayerTokens tokens = {0, 0, static_cast<uint64_t>(data.kv.token_count), data.k, data.v, {}};
  const absl::Time start = absl::Now();
  const absl::StatusOr<v1::AppendResponse> response =
      client.Append(SessionVersion::Of(session), {tokens}, Deadline());
  if (!response.ok()) return response.status();
  return static_cast<double>(data.k.size() + data.v.size()) /
         absl::ToDoubleSeconds(absl::Now() - start);
}

struct Attended {
  std::vector<std::vector<float>> outputs;  // One a query.
  std::vector<absl::Duration> latencies;
};

// One query a call: the latency that a decoding client sees.
absl::StatusOr<Attended> AttendAll(const Client& client, const v1::Session& session,
                                   const DemoData& data) {
  Attended attended;
  for (int query = 0; query < data.query_count; ++query) {
    v1::AttendRequest request;
    v1::AttendItem* item = request.add_items();
    item->set_session_id(session.id());
    item->set_token_count(data.kv.token_count);
    item->mutable_queries()->set_token_count(1);
    item->mutable_queries()->set_q(std::string(data.QueryBytes(query)));
    const absl::Time start = absl::Now();
    const absl::StatusOr<v1::AttendResponse> response = client.Attend(request, Deadline());
    if (!response.ok()) return response.status();
    attended.latencies.push_back(absl::Now() - start);
    if (response->items_size() != 1 ||
        response->items(0).output().size() != 2 * data.QueryBytes(query).size()) {
      return absl::InternalError("the daemon's output has not the shape of the query");
    }
    attended.outputs.push_back(FloatsFromFp32(response->items(0).output()));
  }
  return attended;
}

std::vector<int> ErrorQueries(int query_count) {
  std::vector<int> queries(query_count);
  std::iota(queries.begin(), queries.end(), 0);
  std::mt19937_64 random(kErrorQueriesSeed);
  // std::shuffle may differ between libraries.
  for (size_t i = queries.size(); i > 1; --i) std::swap(queries[i - 1], queries[random() % i]);
  queries.resize(std::min(query_count, kErrorQueries));
  return queries;
}

// Fills in the daemon's error and that of the reference, which stores the same tokens exactly.
void MeasureErrors(const DemoData& data, const Attended& attended, int sealed_end,
                   DemoResult* result) {
  const double scale = 1 / std::sqrt(static_cast<double>(data.kv.head_dim));
  KvArrays reference = data.kv;
  QuantizeLikeKivi(std::min(kSinkTokens, sealed_end), sealed_end, kReferenceBits, &reference);
  const std::vector<int> queries = ErrorQueries(data.query_count);
  double error = 0;
  double reference_error = 0;
  for (const int query : queries) {
    const std::vector<float> q = FloatsFromBf16(data.QueryBytes(query));
    const ExactOutput exact = ExactAttention(data.kv, q, scale);
    const ExactOutput rough = ExactAttention(reference, q, scale);
    const std::vector<float> rough_output(rough.output.begin(), rough.output.end());
    error += RelativeError(attended.outputs[query], exact.output, data.kv.head_dim);
    reference_error += RelativeError(rough_output, exact.output, data.kv.head_dim);
  }
  const double count = static_cast<double>(queries.size());
  result->error_queries = static_cast<int>(queries.size());
  result->relative_error = error / count;
  result->reference_relative_error = reference_error / count;
  const double sealed = std::max(sealed_end - kSinkTokens, 0);
  result->reference_bits_per_value =
      (sealed * KiviBitsPerValue(kReferenceBits) + (data.kv.token_count - sealed) * kBf16Bits) /
      data.kv.token_count;
}

absl::StatusOr<DemoResult> Measure(const Client& client, const DemoData& data,
                                   const v1::Session& session) {
  DemoResult result;
  Progress(absl::StrCat("appending ", CountText(data.kv.token_count), " tokens"));
  const absl::StatusOr<double> rate = AppendBytesPerSecond(client, session, data);
  if (!rate.ok()) return rate.status();
  Progress(absl::StrCat("attending with ", CountText(data.query_count), " queries, one a call"));
  const absl::StatusOr<Attended> attended = AttendAll(client, session, data);
  if (!attended.ok()) return attended.status();
  const absl::StatusOr<v1::Session> stored = client.GetSession(session.id(), Deadline());
  if (!stored.ok()) return stored.status();
  if (stored->layer_states_size() != 1) return absl::InternalError("the session lost its layer");
  Progress("computing exact attention and a 2-bit reference in double precision");
  MeasureErrors(data, *attended, static_cast<int>(stored->layer_states(0).sealed_end()), &result);

  const LatencySummary latency = Summarize(attended->latencies);
  const v1::GetServerInfoResponse& info = client.server_info();
  result.data =
      absl::StrCat(data.model, ", layer ", data.layer, ": ", data.kv.kv_heads, " KV heads of ",
                   data.kv.head_dim, ", ", data.query_heads, " query heads");
  result.backend = absl::StrCat(info.backend(), " (", info.device(), ")");
  result.session_name = session.name();
  result.tokens = data.kv.token_count;
  result.bits_per_value = BitsPerValue(*stored);
  result.ratio = Ratio(*stored);
  result.append_bytes_per_second = *rate;
  result.attend_p50 = latency.p50;
  result.attend_p99 = latency.p99;
  if (!info.metrics_address().empty()) {
    result.metrics_url = absl::StrCat("http://", info.metrics_address(), "/metrics");
  }
  return result;
}

// What the demo has moved, as Prometheus sees it.
void PrintMetrics(const Client& client) {
  const std::string& address = client.server_info().metrics_address();
  if (address.empty()) return;
  const absl::StatusOr<std::string> page = HttpGet(address, "/metrics", Deadline());
  if (!page.ok()) return Progress(absl::StrCat("metrics: ", page.status().message()));
  for (const absl::string_view line : absl::StrSplit(*page, '\n')) {
    for (const absl::string_view metric : kShownMetrics) {
      if (absl::StartsWith(line, metric)) std::printf("  %s\n", std::string(line).c_str());
    }
  }
}

}  // namespace

absl::Status RunDemo(const Arguments&) {
  if (absl::GetFlag(FLAGS_kv).empty()) return UsageError("demo needs --kv; deploy/demo has a file");
  Progress(absl::StrCat("reading ", absl::GetFlag(FLAGS_kv)));
  const absl::StatusOr<DemoData> data = LoadDemoData(absl::GetFlag(FLAGS_kv));
  if (!data.ok()) return data.status();
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::Session> session = CreateDemoSession(**client, *data);
  if (!session.ok()) return session.status();
  const absl::StatusOr<DemoResult> result = Measure(**client, *data, *session);
  if (result.ok()) {
    if (WantsJson()) {
      PrintJson(DemoJson(*result));
    } else {
      std::fputs(DemoText(*result).c_str(), stdout);
      PrintMetrics(**client);
    }
  }
  if (!absl::GetFlag(FLAGS_keep)) {
    absl::Status deleted = (*client)->DeleteSession(session->id(), Deadline());
    if (result.ok() && !deleted.ok()) return deleted;
  }
  if (!result.ok()) return result.status();
  const std::vector<std::string> missed = result->MissedBounds();
  if (missed.empty()) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("bound missed: ", absl::StrJoin(missed, "; ")));
}

}  // namespace kvdepot::cli
