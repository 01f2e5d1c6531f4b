// Calls whose deadline passes while they wait in the daemon for the device, which another call
// holds: the client gets DEADLINE_EXCEEDED, nothing has changed, and the daemon goes on.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/integration/metric.h"
#include "tests/server/gate.h"
#include "tests/server/gated_backend.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr int kTokens = 100;
// Enough for a call to reach the daemon on a busy machine.
constexpr std::chrono::seconds kDeadline(2);

class ExpiredDeadlineTest : public testing::Test {
 protected:
  ExpiredDeadlineTest()
      : daemon_(
            [](Options& options, const std::string&) {
              options.metrics_address = "127.0.0.1:0";
              // No thread of gRPC's shall wait at the gate.
              options.engine.brief_row_tokens_max = 0;
            },
            {[this](const BackendOptions& options) -> absl::StatusOr<std::unique_ptr<Backend>> {
               absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(options);
               if (!backend.ok()) return backend;
               return std::make_unique<GatedBackend>(*std::move(backend), &gate_);
             },
             nullptr}) {}

  v1::Session NewSession(const std::string& name) {
    const v1::Session session = daemon_.CreateSession(name);
    EXPECT_TRUE(daemon_.AppendTokens(session, 0, kTokens).ok());
    return session;
  }

  // Everything that a client can see of the session.
  std::string State(const v1::Session& session) {
    v1::FetchRequest request;
    request.set_session_id(session.id());
    v1::TokenChunk tokens;
    EXPECT_TRUE(daemon_.Fetch(request, &tokens).ok());
    return daemon_.GetSession(session.id()).SerializeAsString() + tokens.SerializeAsString();
  }

  double Rpcs(const std::string& series, const std::string& labels) {
    return Metric(daemon_.server().metrics_address(),
                  absl::StrCat("kvdepot_rpc_", series, "_total{", labels, "}"));
  }
  double Started(const std::string& method) {
    return Rpcs("started", absl::StrCat("method=\"", method, "\""));
  }
  // As the daemon ended them: gRPC cancels a call whose deadline has passed.
  double Expired(const std::string& method) {
    const std::string label = absl::StrCat("\",method=\"", method, "\"");
    return Rpcs("handled", "code=\"DEADLINE_EXCEEDED" + label) +
           Rpcs("handled", "code=\"CANCELLED" + label);
  }

  Gate gate_;
  TestDaemon daemon_;
};

struct LateCall {
  std::string method;
  v1::Session session;
  std::function<grpc::Status(grpc::ClientContext* context, const v1::Session& session)> run;
  std::string state;
  double started = 0;
  grpc::Status status;
};

TEST_F(ExpiredDeadlineTest, ChangesNothing) {
  v1::KvDepotService::Stub& stub = daemon_.stub();
  const v1::Session busy = NewSession("busy");
  std::vector<LateCall> calls;
  const auto add = [&](const std::string& method, auto run) {
    calls.push_back({method, NewSession(method), run, "", 0, {}});
  };
  add("Append", [&](grpc::ClientContext* context, const v1::Session& session) {
    v1::AppendResponse response;
    const auto writer = stub.Append(context, &response);
    writer->Write(AppendOf(session, Chunk(0, kTokens, 2)));
    writer->WritesDone();
    return writer->Finish();
  });
  add("Decode", [&](grpc::ClientContext* context, const v1::Session& session) {
    const auto stream = stub.Decode(context);
    stream->Write(DecodeOf(session, 0, kTokens, 1));
    v1::DecodeResponse response;
    EXPECT_FALSE(stream->Read(&response));
    return stream->Finish();
  });
  add("Attend", [&](grpc::ClientContext* context, const v1::Session& session) {
    v1::AttendResponse response;
    return stub.Attend(context, AttendOf(session, 0, Queries(1, 1)), &response);
  });
  add("TruncateSession", [&](grpc::ClientContext* context, const v1::Session& session) {
    v1::TruncateSessionRequest request;
    request.set_session_id(session.id());
    request.set_generation(session.generation());
    v1::TruncateSessionResponse response;
    return stub.TruncateSession(context, request, &response);
  });
  add("SealSession", [&](grpc::ClientContext* context, const v1::Session& session) {
    v1::SealSessionRequest request;
    request.set_session_id(session.id());
    request.set_generation(session.generation());
    v1::SealSessionResponse response;
    return stub.SealSession(context, request, &response);
  });
  for (LateCall& call : calls) {
    call.state = State(call.session);
    call.started = Started(call.method);
  }

  grpc::Status busy_status;
  std::thread holder([&] { busy_status = daemon_.Attend(AttendOf(busy, 0, Queries(1, 1))); });
  gate_.WaitUntilReached();
  std::vector<std::thread> threads;
  for (LateCall& call : calls) {
    threads.emplace_back([&call] {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kDeadline);
      call.status = call.run(&context, call.session);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const LateCall& call : calls) {
    EXPECT_EQ(call.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << call.method;
    // The daemon had it, and not the client alone.
    EXPECT_GT(Started(call.method), call.started) << call.method;
  }
  gate_.Open();
  holder.join();
  EXPECT_TRUE(busy_status.ok()) << busy_status.error_message();

  for (const LateCall& call : calls) {
    while (Expired(call.method) == 0) {
    }
    EXPECT_EQ(State(call.session), call.state) << call.method;
    EXPECT_TRUE(daemon_.AppendTokens(call.session, kTokens, 1).ok()) << call.method;
  }
}

}  // namespace
}  // namespace kvdepot
