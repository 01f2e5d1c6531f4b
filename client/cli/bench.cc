// kvdepot bench: append and attend throughput of a running daemon, with synthetic data.
//
// Each client has a connection and a session of its own. All append at once, then all attend at
// once, one query a call.
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/cli/session_facts.h"
#include "client/latency_summary.h"
#include "client/synthetic_kv.h"
#include "client/table.h"

ABSL_FLAG(int, tokens, 4096, "Tokens of each session.");
ABSL_FLAG(int, layers, 1, "Layers of each session.");
ABSL_FLAG(int, kv_heads, 8, "KV heads of a layer.");
ABSL_FLAG(int, query_heads, 32, "Query heads of a layer.");
ABSL_FLAG(int, head_dim, 128, "Channels of a head.");
ABSL_FLAG(int, clients, 1, "Clients that work at the same time.");
ABSL_FLAG(int, rounds, 100, "Attend calls of each client.");
ABSL_FLAG(std::string, profile, "compact", "tiny, compact, balanced, fine or exact.");
ABSL_FLAG(std::string, codec, "",
          "raw, planes or packkv. Unset: planes, or raw where --profile=exact.");

namespace kvdepot::cli {
namespace {

constexpr uint64_t kSeed = 1;
constexpr int64_t kTimeToLiveSeconds = 600;

struct Plan {
  SyntheticShape shape;
  int layers = 0;
  int clients = 0;
  int rounds = 0;
  v1::Codec codec = v1::CODEC_UNSPECIFIED;
  v1::Profile profile = v1::PROFILE_UNSPECIFIED;
};

absl::StatusOr<Plan> PlanFromFlags() {
  Plan plan;
  const auto positive = [](const absl::Flag<int>& flag, int* value) {
    *value = absl::GetFlag(flag);
    return *value > 0;
  };
  if (!positive(FLAGS_tokens, &plan.shape.token_count) || !positive(FLAGS_layers, &plan.layers) ||
      !positive(FLAGS_kv_heads, &plan.shape.kv_heads) ||
      !positive(FLAGS_query_heads, &plan.shape.query_heads) ||
      !positive(FLAGS_head_dim, &plan.shape.head_dim) || !positive(FLAGS_clients, &plan.clients) ||
      !positive(FLAGS_rounds, &plan.rounds)) {
    return UsageError("every number of bench is at least 1");
  }
  plan.shape.query_count = 1;
  const std::string profile = absl::AsciiStrToUpper(absl::GetFlag(FLAGS_profile));
  if (!v1::Profile_Parse("PROFILE_" + profile, &plan.profile)) {
    return UsageError(absl::StrCat("--profile=", absl::GetFlag(FLAGS_profile), " is unknown"));
  }
  plan.codec = plan.profile == v1::PROFILE_EXACT ? v1::CODEC_RAW : v1::CODEC_PLANES;
  const std::string codec = absl::AsciiStrToUpper(absl::GetFlag(FLAGS_codec));
  if (codec.empty()) return plan;
  if (!v1::Codec_Parse("CODEC_" + codec, &plan.codec)) {
    return UsageError(absl::StrCat("--codec=", absl::GetFlag(FLAGS_codec), " is unknown"));
  }
  if (plan.codec != v1::CODEC_PLANES) plan.profile = v1::PROFILE_UNSPECIFIED;
  return plan;
}

class BenchClient {
 public:
  BenchClient(const Plan& plan, const SyntheticKv& data) : plan_(plan), data_(data) {}

  absl::Status Create(int number) {
    absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    v1::CreateSessionRequest request;
    request.set_name(absl::StrCat("bench-", getpid(), "-", number));
    request.set_model("synthetic");
    for (int layer = 0; layer < plan_.layers; ++layer) {
      v1::LayerShape* shape = request.add_layers();
      shape->set_kv_heads(plan_.shape.kv_heads);
      shape->set_query_heads(plan_.shape.query_heads);
      shape->set_head_dim(plan_.shape.head_dim);
    }
    request.set_dtype(v1::DTYPE_BF16);
    request.set_codec(plan_.codec);
    request.set_profile(plan_.profile);
    request.mutable_time_to_live()->set_seconds(kTimeToLiveSeconds);
    absl::StatusOr<v1::CreateSessionResponse> created = client_->CreateSession(request, Deadline());
    if (!created.ok()) return created.status();
    session_ = std::move(*created->mutable_session());
    return absl::OkStatus();
  }

  absl::Status Append() {
    const uint64_t token_count = plan_.shape.token_count;
    std::vector<LayerTokens> layers;
    layers.reserve(static_cast<size_t>(plan_.layers));
    for (int layer = 0; layer < plan_.layers; ++layer) {
      layers.push_back({static_cast<uint32_t>(layer), 0, token_count, data_.k, data_.v, {}});
    }
    return client_->Append(SessionVersion::Of(session_), layers, Deadline()).status();
  }

  absl::Status Attend() {
    v1::AttendRequest request;
    v1::AttendItem* item = request.add_items();
    item->set_session_id(session_.id());
    item->mutable_queries()->set_token_count(1);
    item->mutable_queries()->set_q(data_.q);
    for (int round = 0; round < plan_.rounds; ++round) {
      request.set_layer(round % plan_.layers);
      const absl::Time start = absl::Now();
      absl::Status status = client_->Attend(request, Deadline()).status();
      if (!status.ok()) return status;
      latencies_.push_back(absl::Now() - start);
    }
    return absl::OkStatus();
  }

  absl::Status Refresh() {
    absl::StatusOr<v1::Session> session = client_->GetSession(session_.id(), Deadline());
    if (!session.ok()) return session.status();
    session_ = *std::move(session);
    return absl::OkStatus();
  }

  absl::Status Delete() {
    if (session_.id().empty()) return absl::OkStatus();
    return client_->DeleteSession(session_.id(), Deadline());
  }

  const v1::Session& session() const { return session_; }
  const std::vector<absl::Duration>& latencies() const { return latencies_; }

 private:
  const Plan& plan_;
  const SyntheticKv& data_;
  std::unique_ptr<Client> client_;
  v1::Session session_;
  std::vector<absl::Duration> latencies_;
};

using Clients = std::vector<std::unique_ptr<BenchClient>>;

// Runs `work` of all clients at once; returns the time from the first start to the last end.
absl::StatusOr<absl::Duration> AllAtOnce(
    const Clients& clients, const std::function<absl::Status(BenchClient*, int)>& work) {
  std::vector<absl::Status> statuses(clients.size());
  std::vector<std::thread> threads;
  const absl::Time start = absl::Now();
  for (size_t i = 0; i < clients.size(); ++i) {
    threads.emplace_back([&, i] { statuses[i] = work(clients[i].get(), static_cast<int>(i)); });
  }
  for (std::thread& thread : threads) thread.join();
  const absl::Duration elapsed = absl::Now() - start;
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return elapsed;
}

struct BenchResult {
  double append_bytes_per_second = 0;
  double attends_per_second = 0;
  LatencySummary attend;
  double bits_per_value = 0;
};

absl::StatusOr<BenchResult> Measure(const Plan& plan, const SyntheticKv& data,
                                    const Clients& clients) {
  const absl::StatusOr<absl::Duration> created =
      AllAtOnce(clients, [](BenchClient* client, int number) { return client->Create(number); });
  if (!created.ok()) return created.status();
  const absl::StatusOr<absl::Duration> appended =
      AllAtOnce(clients, [](BenchClient* client, int) { return client->Append(); });
  if (!appended.ok()) return appended.status();
  const absl::StatusOr<absl::Duration> attended =
      AllAtOnce(clients, [](BenchClient* client, int) { return client->Attend(); });
  if (!attended.ok()) return attended.status();
  const absl::Status refreshed = clients.front()->Refresh();
  if (!refreshed.ok()) return refreshed;

  std::vector<absl::Duration> latencies;
  for (const auto& client : clients) {
    latencies.insert(latencies.end(), client->latencies().begin(), client->latencies().end());
  }
  const double appended_bytes =
      static_cast<double>(data.k.size() + data.v.size()) * plan.layers * plan.clients;
  BenchResult result;
  result.append_bytes_per_second = appended_bytes / absl::ToDoubleSeconds(*appended);
  result.attends_per_second =
      static_cast<double>(latencies.size()) / absl::ToDoubleSeconds(*attended);
  result.attend = Summarize(std::move(latencies));
  result.bits_per_value = BitsPerValue(clients.front()->session());
  return result;
}

void Print(const BenchResult& result) {
  if (WantsJson()) {
    google::protobuf::Struct object;
    SetNumber("append_bytes_per_second", result.append_bytes_per_second, &object);
    SetNumber("attends_per_second", result.attends_per_second, &object);
    SetNumber("attend_p50_seconds", absl::ToDoubleSeconds(result.attend.p50), &object);
    SetNumber("attend_p99_seconds", absl::ToDoubleSeconds(result.attend.p99), &object);
    SetNumber("attend_mean_seconds", absl::ToDoubleSeconds(result.attend.mean), &object);
    SetNumber("bits_per_value", result.bits_per_value, &object);
    PrintJson(object);
    return;
  }
  Table table({{""}, {""}});
  table.AddRow({"append", RateText(result.append_bytes_per_second)});
  table.AddRow({"attend", absl::StrCat(NumberText(result.attends_per_second), " calls/s, p50 ",
                                       DurationText(result.attend.p50), ", p99 ",
                                       DurationText(result.attend.p99))});
  table.AddRow({"bits per value", NumberText(result.bits_per_value)});
  std::fputs(table.ToString().c_str(), stdout);
}

}  // namespace

absl::Status RunBench(const Arguments&) {
  const absl::StatusOr<Plan> plan = PlanFromFlags();
  if (!plan.ok()) return plan.status();
  const SyntheticKv data = MakeSyntheticKv(plan->shape, kSeed);
  Clients clients;
  for (int i = 0; i < plan->clients; ++i) {
    clients.push_back(std::make_unique<BenchClient>(*plan, data));
  }
  const absl::StatusOr<BenchResult> result = Measure(*plan, data, clients);
  // Also after a failure: the other clients' sessions would hold their memory until they expire.
  const absl::StatusOr<absl::Duration> deleted =
      AllAtOnce(clients, [](BenchClient* client, int) { return client->Delete(); });
  if (!result.ok()) return result.status();
  Print(*result);
  return deleted.status();
}

}  // namespace kvdepot::cli
