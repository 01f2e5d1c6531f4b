// kvdepot doctor: one check after the other, from the socket to attention, each with a hint where
// it fails. What is misconfigured most often has an explanation of its own: a socket that cannot be
// opened, a token that is not known, TLS that does not fit, a container or a tenant that cannot
// map, memory that is full, a GPU that is not used or not seen.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/connection_checks.h"
#include "client/cli/daemon_checks.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/finding.h"
#include "client/cli/http_get.h"
#include "client/cli/json.h"
#include "client/cli/process_checks.h"
#include "client/cli/process_facts.h"
#include "client/cli/quantity.h"
#include "client/cli/tls_probe.h"
#include "client/exact_attention.h"
#include "client/health.h"
#include "client/lease.h"
#include "client/mapped_session.h"
#include "client/printable.h"
#include "client/synthetic_kv.h"

namespace kvdepot::cli {
namespace {

constexpr uint64_t kSeed = 1;
constexpr int64_t kTimeToLiveSeconds = 60;
constexpr SyntheticShape kShape = {/*token_count=*/600, /*query_count=*/1, /*kv_heads=*/2,
                                   /*query_heads=*/8, /*head_dim=*/128};
// Exact storage: what is left is rounding in the attention itself.
constexpr double kRawErrorMax = 2e-3;
// Three times what the synthetic data give. A wrong channel order or scale gives 1 and more.
constexpr double kPlanesErrorMax = 0.15;

struct Check {
  std::string name;
  // For failures without a cure of their own.
  std::string hint;
  std::function<Finding()> run;
};

v1::CreateSessionRequest SessionRequest(v1::Codec codec) {
  v1::CreateSessionRequest request;
  request.set_name(absl::StrCat("doctor-", getpid(), "-", EnumText(codec)));
  request.set_model("synthetic");
  v1::LayerShape* shape = request.add_layers();
  shape->set_kv_heads(kShape.kv_heads);
  shape->set_query_heads(kShape.query_heads);
  shape->set_head_dim(kShape.head_dim);
  request.set_dtype(v1::DTYPE_BF16);
  request.set_codec(codec);
  request.mutable_time_to_live()->set_seconds(kTimeToLiveSeconds);
  return request;
}

// Error of one attend over stored synthetic tokens.
absl::StatusOr<double> AttendError(const Client& client, const v1::Session& session) {
  const SyntheticKv data = MakeSyntheticKv(kShape, kSeed);
  const LayerTokens tokens = {0, 0, static_cast<uint64_t>(kShape.token_count), data.k, data.v, {}};
  const absl::Status appended =
      client.Append(SessionVersion::Of(session), {tokens}, Deadline()).status();
  if (!appended.ok()) return appended;
  v1::AttendRequest request;
  v1::AttendItem* item = request.add_items();
  item->set_session_id(session.id());
  item->mutable_queries()->set_token_count(1);
  item->mutable_queries()->set_q(data.q);
  const absl::StatusOr<v1::AttendResponse> response = client.Attend(request, Deadline());
  if (!response.ok()) return response.status();
  const std::vector<float> q = FloatsFromBf16(data.q);
  const std::vector<float> output =
      FloatsFromFp32(response->items_size() == 1 ? response->items(0).output() : "");
  if (output.size() != q.size()) return absl::InternalError("the output has a wrong size");
  const KvArrays kv = {kShape.token_count, kShape.kv_heads, kShape.head_dim, FloatsFromBf16(data.k),
                       FloatsFromBf16(data.v)};
  const ExactOutput exact = ExactAttention(kv, q, 1 / std::sqrt(double{kShape.head_dim}));
  return RelativeError(output, exact.output, kShape.head_dim);
}

// Where a limit is met, the message names it.
absl::Status ExplainLimit(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return status;
  return Misconfigured(status.message(),
                       "make room, or raise that limit: the daemon's flag has its name");
}

// Create, append, attend, compare, delete.
Finding RoundTrip(const Client& client, v1::Codec codec, double error_max) {
  const absl::StatusOr<v1::CreateSessionResponse> created =
      client.CreateSession(SessionRequest(codec), Deadline());
  if (!created.ok()) return ExplainLimit(created.status());
  const absl::StatusOr<double> error = AttendError(client, created->session());
  const absl::Status deleted = client.DeleteSession(created->session().id(), Deadline());
  if (!error.ok()) return ExplainLimit(error.status());
  if (!deleted.ok()) return deleted;
  const std::string finding =
      absl::StrFormat("%d tokens stored, attended and deleted; error %.2g against exact attention",
                      kShape.token_count, *error);
  if (*error <= error_max) return finding;
  return absl::InternalError(absl::StrCat(finding, ", allowed ", error_max));
}

Finding CheckEpoch(const Client& client) {
  const absl::StatusOr<v1::GetServerInfoResponse> again = client.GetServerInfo(Deadline());
  if (!again.ok()) return again.status();
  if (again->epoch() == 0 || again->epoch() != client.server_info().epoch()) {
    return absl::InternalError(
        absl::StrFormat("%016x, then %016x", client.server_info().epoch(), again->epoch()));
  }
  return absl::StrFormat("%016x", again->epoch());
}

Finding CheckMemoryOf(const Client& client) {
  const absl::StatusOr<std::vector<v1::Session>> sessions = client.ListSessions(Deadline());
  if (!sessions.ok()) return sessions.status();
  uint64_t bytes = 0;
  for (const v1::Session& session : *sessions) bytes += session.stored_bytes();
  return CheckMemory(client.server_info(), bytes);
}

Finding CheckMetrics(const Client& client) {
  const std::string& address = client.server_info().metrics_address();
  if (address.empty()) return "switched off";
  const absl::StatusOr<std::string> page = HttpGet(address, "/metrics", Deadline());
  if (!page.ok()) return page.status();
  if (!absl::StrContains(*page, "kvdepot_")) return absl::InternalError("no metric of kvdepot");
  return absl::StrCat("http://", address, "/metrics");
}

// Error of the last of the tokens, appended and attended to in this process.
absl::StatusOr<double> MappedError(const std::shared_ptr<Lease>& lease,
                                   const v1::Session& created) {
  absl::StatusOr<std::unique_ptr<MappedSession>> session = MappedSession::Open(
      lease, created.id(), {MapAccess::kWrite, static_cast<uint32_t>(kShape.token_count)},
      Deadline());
  if (!session.ok()) return session.status();
  const SyntheticKv data = MakeSyntheticKv(kShape, kSeed);
  const auto bytes = [](const std::string& values) {
    return reinterpret_cast<const std::byte*>(values.data());
  };
  absl::Status status = (*session)->Append(0, {bytes(data.k), bytes(data.v), kShape.token_count});
  if (status.ok()) status = (*session)->Commit(Deadline());
  if (!status.ok()) return status;
  const std::vector<float> q = FloatsFromBf16(data.q);
  std::vector<float> output(q.size());
  std::vector<float> log_sum_exp(kShape.query_heads);
  MappedStream::Query query;
  query.session = session->get();
  query.query_tokens = 1;
  query.q = bytes(data.q);
  query.output = output.data();
  query.log_sum_exp = log_sum_exp.data();
  status = MappedStream(1).Attend(0, 0, {query});
  if (!status.ok()) return status;
  const KvArrays kv = {kShape.token_count, kShape.kv_heads, kShape.head_dim, FloatsFromBf16(data.k),
                       FloatsFromBf16(data.v)};
  const ExactOutput exact = ExactAttention(kv, q, 1 / std::sqrt(double{kShape.head_dim}));
  return RelativeError(output, exact.output, kShape.head_dim);
}

// What to change where this process cannot map, by what the daemon or the system said.
absl::Status ExplainMapping(const absl::Status& status) {
  absl::string_view cure;
  if (absl::IsPermissionDenied(status)) {
    cure =
        "start the daemon with this tenant in --mapping_tenants: a mapping shows whole slabs of "
        "it; or call Append, Attend and Decode, which need no mapping";
  } else if (absl::StrContains(status.message(), "Permission denied")) {
    cure = "run this process as the daemon's user: its sockets are for that one alone";
  } else if (absl::StartsWith(status.message(), "life_socket")) {
    cure =
        "share the whole folder of the daemon's socket with this container, under the same path: "
        "the life socket lies beside it";
  } else if (absl::StartsWith(status.message(), "pidfd")) {
    cure =
        "run this process in the daemon's PID namespace (hostPID, shareProcessNamespace), or on "
        "Linux 6.9 or newer, and let its seccomp profile allow pidfd_open";
  } else {
    return ExplainLimit(status);
  }
  return Misconfigured(status.message(), cure);
}

// A session in this process's own address space, from the lease to attention.
Finding CheckMapping(const Client& client) {
  if (!absl::StartsWith(Target(), "unix:")) return "not for a daemon that is reached by TCP";
  const absl::StatusOr<Client::Options> options = ClientOptions();
  if (!options.ok()) return options.status();
  const absl::StatusOr<std::shared_ptr<Lease>> lease = Lease::Open(Target(), *options, Deadline());
  if (!lease.ok()) return ExplainMapping(lease.status());
  const absl::StatusOr<v1::CreateSessionResponse> created =
      client.CreateSession(SessionRequest(v1::CODEC_RAW), Deadline());
  if (!created.ok()) return ExplainLimit(created.status());
  if (!(*lease)->device().empty()) {
    // Room for the writer comes in slabs. This command has no kernels to attend with.
    absl::Status mapped =
        MappedSession::Open(*lease, created->session().id(), {MapAccess::kWrite, 0}, Deadline())
            .status();
    mapped.Update(client.DeleteSession(created->session().id(), Deadline()));
    if (!mapped.ok()) return ExplainMapping(mapped);
    return absl::StrCat("memory of ", (*lease)->device(), " mapped in this process");
  }
  const absl::StatusOr<double> error = MappedError(*lease, created->session());
  const absl::Status deleted = client.DeleteSession(created->session().id(), Deadline());
  if (absl::IsUnimplemented(error.status())) {
    return absl::StrCat("not offered by the backend ", client.server_info().backend());
  }
  if (!error.ok()) return ExplainMapping(error.status());
  if (!deleted.ok()) return deleted;
  const std::string finding = absl::StrFormat(
      "%d tokens written and attended in this process; error %.2g", kShape.token_count, *error);
  if (*error <= kRawErrorMax) return finding;
  return absl::InternalError(absl::StrCat(finding, ", allowed ", kRawErrorMax));
}

ConnectionFacts GatherConnectionFacts() {
  ConnectionFacts facts;
  facts.target = Target();
  facts.token_file = TokenFile();
  facts.ca_file = AuthorityFile();
  facts.cert_file = CertificateFile();
  facts.is_tcp = !absl::StartsWith(facts.target, "unix:");
  if (!facts.is_tcp) return facts;
  // Those that could not be read have been reported.
  const auto content = [](const std::string& path) {
    return path.empty() ? std::string() : ReadFile(path).value_or("");
  };
  facts.tls =
      ProbeTls(facts.target, {content(facts.ca_file), content(facts.cert_file), content(KeyFile())},
               Deadline());
  return facts;
}

Finding CheckConnection(std::unique_ptr<Client>* client) {
  absl::StatusOr<std::unique_ptr<Client>> connected = ConnectToDaemon();
  if (!connected.ok()) return ExplainFailure(connected.status(), GatherConnectionFacts());
  *client = *std::move(connected);
  return absl::StrCat(Target(), ", tenant ", (*client)->server_info().tenant());
}

Finding CheckServing() {
  const absl::StatusOr<Client::Options> options = ClientOptions();
  if (!options.ok()) return options.status();
  const absl::Status status = CheckHealth(Target(), options->credentials, Deadline());
  if (!status.ok()) return status;
  return "serving";
}

// The later checks need what the connection brings.
std::vector<Check> Checks(const ProcessFacts& facts, std::unique_ptr<Client>* client) {
  return {
      {"socket", "start the daemon (kvdepotd), or name its socket with --target",
       [&facts] { return CheckSocket(facts); }},
      {"connection", "start the daemon (kvdepotd), or name its socket with --target",
       [client] { return CheckConnection(client); }},
      {"health", "it is starting or draining: look at its log", [] { return CheckServing(); }},
      {"epoch", "the daemon restarts all the time: look at its log",
       [client] { return CheckEpoch(**client); }},
      {"version", "install client and daemon of the same release",
       [client] { return CheckVersion((*client)->server_info()); }},
      {"backend", "look at --device of the daemon",
       [client] { return CheckBackend((*client)->server_info()); }},
      {"memory", "look at --memory_budget of the daemon",
       [client] { return CheckMemoryOf(**client); }},
      {"raw codec", "this is a bug: please report it with the daemon's log",
       [client] { return RoundTrip(**client, v1::CODEC_RAW, kRawErrorMax); }},
      {"planes codec", "this is a bug: please report it with the daemon's log",
       [client] { return RoundTrip(**client, v1::CODEC_PLANES, kPlanesErrorMax); }},
      {"process", "clients on this machine can still call Append, Attend and Decode",
       [&facts, client] { return CheckProcess(facts, (*client)->server_info()); }},
      {"device", "clients on this machine can still call Append, Attend and Decode",
       [&facts, client] { return CheckDevice(facts, (*client)->server_info()); }},
      {"mapping", "clients on this machine can still call Append, Attend and Decode",
       [client] { return CheckMapping(**client); }},
      {"metrics", "look at --metrics_address of the daemon; a remote one may be out of reach",
       [client] { return CheckMetrics(**client); }},
  };
}

// Whether it is all right, or nearly.
bool Passes(const Finding& finding) { return finding.ok() || IsDoubtful(finding.status()); }

// Prints one check and appends it to the report.
void Record(const Check& check, const Finding& finding, google::protobuf::ListValue* report) {
  const std::string detail =
      Printable(finding.ok() ? absl::string_view(*finding) : finding.status().message());
  const std::string cure = CureOf(finding.status());
  const std::string& hint = cure.empty() ? check.hint : cure;
  google::protobuf::Struct* entry = report->add_values()->mutable_struct_value();
  SetText("name", check.name, entry);
  SetBool("ok", Passes(finding), entry);
  SetText("detail", detail, entry);
  if (!finding.ok()) SetText("hint", hint, entry);
  if (WantsJson()) return;
  std::printf("%-4s  %-12s  %s\n",
              finding.ok()      ? "ok"
              : Passes(finding) ? "note"
                                : "FAIL",
              check.name.c_str(), detail.c_str());
  if (!finding.ok()) std::printf("      %-12s  hint: %s\n", "", hint.c_str());
}

}  // namespace

absl::Status RunDoctor(const Arguments&) {
  google::protobuf::Struct object;
  google::protobuf::ListValue* report = SetList("checks", &object);
  const ProcessFacts facts = GatherProcessFacts(Target());
  std::unique_ptr<Client> client;
  int failed = 0;
  for (const Check& check : Checks(facts, &client)) {
    const Finding finding = check.run();
    Record(check, finding, report);
    if (Passes(finding)) continue;
    ++failed;
    if (client == nullptr) break;  // Nobody else can be asked.
  }
  SetBool("ok", failed == 0, &object);
  if (WantsJson()) PrintJson(object);
  if (failed == 0) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat(failed, failed == 1 ? " check failed" : " checks failed"));
}

}  // namespace kvdepot::cli
