// What every RPC has in common: who may call it, how many at once and how often, and what the log
// says of slow ones.
#include "server/services/rpc_call.h"

#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "server/role.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

// A daemon that knows two tokens: "a" of alice, a client, and "abc" of ops, an operator.
void WithTokens(Options& options, const std::string& folder) {
  options.tokens_file = folder + "/tokens";
  std::ofstream(options.tokens_file)
      << "ops ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad operator\n"
      << "alice ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb client\n";
}

TEST(Roles, OperatorsChangeTheDaemonAndClientsHaveSessions) {
  TestDaemon daemon(WithTokens);
  v1::SetBudgetRequest set;
  set.set_budget("1GiB");
  v1::SetBudgetResponse was_set;
  Context alice("a"), ops("abc");
  const grpc::Status refused = daemon.stub().SetBudget(alice.get(), set, &was_set);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(refused.error_message(),
            "authorization: a token of role client, SetBudget needs operator");
  EXPECT_TRUE(daemon.stub().SetBudget(ops.get(), set, &was_set).ok());

  v1::ListSessionsResponse sessions;
  Context alice_lists("a"), ops_lists("abc");
  EXPECT_TRUE(daemon.stub().ListSessions(alice_lists.get(), {}, &sessions).ok());
  EXPECT_EQ(daemon.stub().ListSessions(ops_lists.get(), {}, &sessions).error_message(),
            "authorization: a token of role operator, ListSessions needs client");
  v1::GetServerInfoResponse info;
  Context ops_asks("abc");
  EXPECT_TRUE(daemon.stub().GetServerInfo(ops_asks.get(), {}, &info).ok());
}

TEST(Roles, EveryCallButTwoIsAClients) {
  for (int i = 0; i < kRpcMethodCount; ++i) {
    const RpcMethod method = static_cast<RpcMethod>(i);
    const bool of_operators = method == RpcMethod::kSetBudget;
    const bool of_all = method == RpcMethod::kGetServerInfo;
    EXPECT_EQ(MayCall(Role::kClient, method), !of_operators) << RpcMethodName(method);
    EXPECT_EQ(MayCall(Role::kOperator, method), of_operators || of_all) << RpcMethodName(method);
    EXPECT_TRUE(MayCall(Role::kBoth, method)) << RpcMethodName(method);
  }
}

TEST(TenantLimits, OpenCallsAreCountedUntilTheyEnd) {
  TestDaemon daemon([](Options& options, const std::string& folder) {
    WithTokens(options, folder);
    options.calls_per_tenant_max = 2;
  });
  const auto list = [&](const char* token) {
    Context context(token);
    v1::GetServerInfoResponse info;
    return daemon.stub().GetServerInfo(context.get(), {}, &info);
  };
  {
    Context first("a"), second("a");
    const auto stream = daemon.stub().Decode(first.get());
    const auto other = daemon.stub().Decode(second.get());
    // Streams that have sent nothing count from the moment at which the daemon has heard of them.
    grpc::Status status;
    while ((status = list("a")).ok()) {
    }
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(status.error_message(), "calls_per_tenant_max: 2 of 2 calls are open");
    EXPECT_TRUE(list("abc").ok()) << "another tenant's";
    for (const auto* open : {&stream, &other}) {
      (*open)->WritesDone();
      EXPECT_TRUE((*open)->Finish().ok());
    }
  }
  EXPECT_TRUE(list("a").ok());
}

TEST(TenantLimits, RequestsBeyondTheRateAreRefusedAndSaidWhenToComeAgain) {
  TestDaemon daemon([](Options& options, const std::string& folder) {
    WithTokens(options, folder);
    options.requests_per_second_per_tenant_max = 5;
  });
  grpc::Status status;
  for (int i = 0; i < 1000 && status.ok(); ++i) {
    Context context("a");
    v1::GetServerInfoResponse info;
    status = daemon.stub().GetServerInfo(context.get(), {}, &info);
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(
      absl::StartsWith(status.error_message(), "requests_per_second_per_tenant_max: more than 5 "));
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(rich.details().rbegin()->UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  Context other("abc");
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(daemon.stub().GetServerInfo(other.get(), {}, &info).ok()) << "another tenant's";
}

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";

// What a daemon of this threshold logs of an Append stream of a client that sends a trace.
std::string LogOfAnAppend(absl::Duration threshold) {
  testing::internal::CaptureStderr();
  {
    TestDaemon daemon([threshold](Options& options, const std::string&) {
      options.slow_request_threshold = threshold;
      options.log_level = "info";
    });
    const v1::Session session = daemon.CreateSession("chat");
    Context context;
    context.get()->AddMetadata("traceparent",
                               absl::StrCat("00-", kTraceId, "-00f067aa0ba902b7-01"));
    v1::AppendResponse response;
    const auto stream = daemon.stub().Append(context.get(), &response);
    v1::AppendRequest request;
    request.set_session_id(session.id());
    request.set_generation(session.generation());
    *request.mutable_chunk() = Chunk(0, 0, 8);
    EXPECT_TRUE(stream->Write(request));
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
  }
  return testing::internal::GetCapturedStderr();
}

TEST(SlowRequests, AreLoggedWithTheirCallersTrace) {
  const std::string log = LogOfAnAppend(absl::Nanoseconds(1));
  EXPECT_TRUE(absl::StrContains(log, "event=slow method=Append tenant=default code=OK seconds="))
      << log;
  EXPECT_TRUE(
      absl::StrContains(log, absl::StrCat(" trace_id=", kTraceId, " parent_id=00f067aa0ba902b7")))
      << log;
}

TEST(SlowRequests, OthersAreNot) {
  EXPECT_FALSE(absl::StrContains(LogOfAnAppend(absl::Hours(1)), "event=slow"));
  EXPECT_FALSE(absl::StrContains(LogOfAnAppend(absl::ZeroDuration()), "event=slow"))
      << "switched off";
}

}  // namespace
}  // namespace kvdepot
