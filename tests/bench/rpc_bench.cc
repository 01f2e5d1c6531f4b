// Latency and throughput of the daemon over its socket, and a bare gRPC echo to hold it against.
// rpc_bench.py starts the daemon and reads what this prints: one "name value" a line, a line for
// each sample, times in microseconds.
//
//   rpc_bench echo SOCKET
//     serves Attend with a canned reply until killed
//   rpc_bench overhead DAEMON ECHO CALLS
//     the same Attend to both, taking turns
//   rpc_bench concurrency DAEMON CLIENTS CALLS
//     clients with a connection and a session each
//   rpc_bench fairness DAEMON TOKEN_A TOKEN_B CALLS
//     b's small calls without and beside a's large ones
//   rpc_bench append DAEMON REPEATS
//     a prompt, until all that may be sealed is sealed

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/synthetic_kv.h"
#include "kvdepot/v1/kv_depot_service.grpc.pb.h"
#include "server/options.h"

namespace kvdepot {
namespace {

constexpr absl::Duration kTimeout = absl::Minutes(2);

template <typename T>
T OrDie(absl::StatusOr<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "rpc_bench: %s\n", result.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(result);
}

void Print(const std::string& name, double value) { std::printf("%s %.9g\n", name.c_str(), value); }

// Every sample: the reader takes percentiles and spread.
void PrintLatencies(const std::string& name, const std::vector<absl::Duration>& latencies) {
  for (const absl::Duration latency : latencies) Print(name, absl::ToDoubleMicroseconds(latency));
}

// One client with a session of its own, filled with synthetic tokens.
class Tenant {
 public:
  Tenant(const std::string& socket, const std::string& token, const std::string& name,
         const SyntheticShape& shape, int layers = 1)
      : data_(MakeSyntheticKv(shape, /*seed=*/1)), shape_(shape), layers_(layers) {
    client_ = OrDie(Client::Connect("unix:" + socket, {token, nullptr}, Deadline()));
    v1::CreateSessionRequest request;
    request.set_name(name);
    request.set_dtype(v1::DTYPE_BF16);
    for (int i = 0; i < layers; ++i) {
      v1::LayerShape* layer = request.add_layers();
      layer->set_kv_heads(static_cast<uint32_t>(shape.kv_heads));
      layer->set_query_heads(static_cast<uint32_t>(shape.query_heads));
      layer->set_head_dim(static_cast<uint32_t>(shape.head_dim));
    }
    session_ = OrDie(client_->CreateSession(request, Deadline())).session();
  }
  ~Tenant() { (void)client_->DeleteSession(session_.id(), Deadline()); }

  // Seconds of the whole prompt.
  double Append() {
    std::vector<LayerTokens> tokens;
    for (int i = 0; i < layers_; ++i) {
      tokens.push_back({static_cast<uint32_t>(i),
                        0,
                        static_cast<uint64_t>(shape_.token_count),
                        data_.k,
                        data_.v,
                        {}});
    }
    const absl::Time start = absl::Now();
    OrDie(client_->Append(SessionVersion::Of(session_), tokens, Deadline()));
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

  v1::AttendRequest Request() const {
    v1::AttendRequest request;
    v1::AttendItem* item = request.add_items();
    item->set_session_id(session_.id());
    item->mutable_queries()->set_token_count(static_cast<uint32_t>(shape_.query_count));
    item->mutable_queries()->set_q(data_.q);
    return request;
  }

  // False: an error.
  bool Attend(std::vector<absl::Duration>* latencies) {
    const v1::AttendRequest request = Request();
    const absl::Time start = absl::Now();
    const bool ok = client_->Attend(request, Deadline()).ok();
    latencies->push_back(absl::Now() - start);
    return ok;
  }

  uint64_t prompt_bytes() const {
    return static_cast<uint64_t>(layers_) * (data_.k.size() + data_.v.size());
  }

 private:
  static absl::Time Deadline() { return absl::Now() + kTimeout; }

  SyntheticKv data_;
  SyntheticShape shape_;
  int layers_;
  std::unique_ptr<Client> client_;
  v1::Session session_;
};

// Answers with an output of twice the bytes of q, as fp32 for bf16, and does nothing else.
class EchoService final : public v1::KvDepotService::CallbackService {
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const v1::AttendRequest* request,
                                   v1::AttendResponse* response) override {
    v1::AttendOutput* output = response->add_items();
    const size_t query_bytes = request->items(0).queries().q().size();
    output->set_output(std::string(2 * query_bytes, 'o'));
    output->set_log_sum_exp(std::string(query_bytes / 64, 'l'));
    output->set_token_count(64);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

int Echo(const std::string& socket) {
  EchoService service;
  grpc::ServerBuilder builder;
  // As the daemon is set up.
  const Options options;
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max));
  builder.SetMaxSendMessageSize(static_cast<int>(options.message_bytes_max));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             options.concurrent_calls_per_connection_max);
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  builder.BuildAndStart()->Wait();
  return 0;
}

absl::Duration TimedCall(v1::KvDepotService::Stub& stub, const v1::AttendRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  context.set_wait_for_ready(true);
  v1::AttendResponse response;
  const absl::Time start = absl::Now();
  const grpc::Status status = stub.Attend(&context, request, &response);
  const absl::Duration latency = absl::Now() - start;
  if (!status.ok()) {
    std::fprintf(stderr, "rpc_bench: %s\n", status.error_message().c_str());
    std::exit(1);
  }
  return latency;
}

int Overhead(const std::string& daemon, const std::string& echo, int calls) {
  const auto stub_of = [](const std::string& socket) {
    return v1::KvDepotService::NewStub(
        grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()));
  };
  Tenant tenant(daemon, "", "overhead", {64, 1, 8, 32, 128});
  tenant.Append();
  const v1::AttendRequest request = tenant.Request();
  const auto ours = stub_of(daemon);
  const auto bare = stub_of(echo);
  constexpr int kWarmUp = 200;
  std::vector<absl::Duration> our_latencies, echo_latencies;
  for (int call = 0; call < calls + kWarmUp; ++call) {
    // Who goes first alternates: what one server leaves of the caches is the other's start.
    if (call % 2 == 0) our_latencies.push_back(TimedCall(*ours, request));
    echo_latencies.push_back(TimedCall(*bare, request));
    if (call % 2 == 1) our_latencies.push_back(TimedCall(*ours, request));
  }
  our_latencies.erase(our_latencies.begin(), our_latencies.begin() + kWarmUp);
  echo_latencies.erase(echo_latencies.begin(), echo_latencies.begin() + kWarmUp);
  PrintLatencies("ours", our_latencies);
  PrintLatencies("echo", echo_latencies);
  return 0;
}

int Concurrency(const std::string& daemon, int clients, int calls) {
  std::vector<std::unique_ptr<Tenant>> tenants;
  for (int i = 0; i < clients; ++i) {
    tenants.push_back(std::make_unique<Tenant>(daemon, "", absl::StrCat("client-", i),
                                               SyntheticShape{4096, 1, 2, 12, 128}));
    tenants.back()->Append();
  }
  std::vector<std::vector<absl::Duration>> latencies(tenants.size());
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  const absl::Time start = absl::Now();
  for (size_t i = 0; i < tenants.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int call = 0; call < calls; ++call) {
        if (!tenants[i]->Attend(&latencies[i])) ++errors;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  Print("seconds", seconds);
  Print("errors", errors.load());
  for (const auto& part : latencies) PrintLatencies("attend", part);
  return 0;
}

int Fairness(const std::string& daemon, const std::string& token_a, const std::string& token_b,
             int calls) {
  Tenant large(daemon, token_a, "large", {32768, 512, 2, 12, 128});
  // As many query tokens as the daemon computes in one piece.
  const int piece_queries = static_cast<int>(EngineOptions().work_piece_row_tokens / (12 * 32768));
  Tenant piece(daemon, token_a, "piece", {32768, piece_queries, 2, 12, 128});
  Tenant small(daemon, token_b, "small", {4096, 1, 2, 12, 128});
  large.Append();
  piece.Append();
  small.Append();
  const auto measure = [&](const std::string& name) {
    std::vector<absl::Duration> latencies;
    for (int call = 0; call < calls; ++call) {
      if (!small.Attend(&latencies)) std::exit(1);
    }
    PrintLatencies(name, latencies);
  };
  measure("alone");
  std::vector<absl::Duration> pieces;
  for (int call = 0; call < calls; ++call) piece.Attend(&pieces);
  PrintLatencies("piece", pieces);

  std::atomic<bool> stop{false};
  std::vector<absl::Duration> large_latencies;
  std::thread background([&] {
    while (!stop.load()) large.Attend(&large_latencies);
  });
  // Until a's first call is on the device.
  absl::SleepFor(absl::Milliseconds(200));
  measure("beside");
  stop.store(true);
  background.join();
  PrintLatencies("large", large_latencies);
  return 0;
}

int Append(const std::string& daemon, int repeats) {
  for (int repeat = 0; repeat < repeats; ++repeat) {
    Tenant tenant(daemon, "", "append", {8192, 1, 8, 32, 128}, /*layers=*/8);
    const double seconds = tenant.Append();
    Print("bytes_per_second", static_cast<double>(tenant.prompt_bytes()) / seconds);
  }
  return 0;
}

int Run(const std::vector<std::string>& arguments) {
  const std::string mode = arguments.empty() ? "" : arguments[0];
  const auto number = [&](size_t i) { return std::atoi(arguments[i].c_str()); };
  if (mode == "echo" && arguments.size() == 2) return Echo(arguments[1]);
  if (mode == "overhead" && arguments.size() == 4)
    return Overhead(arguments[1], arguments[2], number(3));
  if (mode == "concurrency" && arguments.size() == 4)
    return Concurrency(arguments[1], number(2), number(3));
  if (mode == "fairness" && arguments.size() == 5)
    return Fairness(arguments[1], arguments[2], arguments[3], number(4));
  if (mode == "append" && arguments.size() == 3) return Append(arguments[1], number(2));
  std::fprintf(stderr, "usage: see the top of rpc_bench.cc\n");
  return 2;
}

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) { return kvdepot::Run({argv + 1, argv + argc}); }
