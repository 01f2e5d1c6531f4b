// The C interface against a whole daemon: what it computes, and what it says to a caller who errs.
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "client/kvdepot.h"
#include "gtest/gtest.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr double kTimeout = 30;

class KvdepotCTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string target = daemon_.server().addresses()[0];
    ASSERT_EQ(kvdepot_lease_open(target.c_str(), nullptr, kTimeout, &lease_), KVDEPOT_OK)
        << kvdepot_error_message();
    ASSERT_EQ(kvdepot_stream_create(1, &stream_), KVDEPOT_OK);
    for (int i = 0; i < 2; ++i) {
      const v1::Session created = daemon_.CreateSession(i == 0 ? "first" : "second");
      ids_[i] = created.id();
      ASSERT_EQ(kvdepot_session_open(lease_, created.name().c_str(), KVDEPOT_WRITE, 0, kTimeout,
                                     &sessions_[i]),
                KVDEPOT_OK)
          << kvdepot_error_message();
    }
  }
  void TearDown() override {
    for (kvdepot_session* session : sessions_) kvdepot_session_close(session);
    kvdepot_stream_close(stream_);
    kvdepot_lease_close(lease_);
  }

  // Of token 0 of layer 0 in session i.
  struct Call {
    explicit Call(kvdepot_session* session) : token(0, 0, 1), query(7) {
      const MappedStream::Query from = query.Of(nullptr);
      c = {sizeof(c),      session, 1,           token.k.data(),
           token.v.data(), from.q,  from.output, from.log_sum_exp};
    }
    MappedTokens token;
    MappedQuery query;
    kvdepot_query c;
  };
  int AppendAttend(const std::vector<kvdepot_query>& queries) {
    return kvdepot_append_attend(stream_, 0, 0, queries.data(), queries.size());
  }
  uint64_t TokenCount(int session) {
    uint64_t count = 0;
    EXPECT_EQ(kvdepot_session_token_count(sessions_[session], 0, &count), KVDEPOT_OK);
    return count;
  }
  // A refused call: its code and message, and nothing was written.
  void ExpectRefused(int code, int expected, const std::string& message) {
    EXPECT_EQ(code, expected);
    EXPECT_EQ(kvdepot_error_message(), message);
    EXPECT_EQ(TokenCount(0), 0u);
    EXPECT_EQ(TokenCount(1), 0u);
  }

  TestDaemon daemon_{InHostMemory};
  kvdepot_lease* lease_ = nullptr;
  kvdepot_stream* stream_ = nullptr;
  kvdepot_session* sessions_[2] = {};
  std::string ids_[2];
};

TEST_F(KvdepotCTest, SessionsOfOneCallAreEachAttended) {
  Call first(sessions_[0]);
  Call second(sessions_[1]);
  ASSERT_EQ(AppendAttend({first.c, second.c}), KVDEPOT_OK) << kvdepot_error_message();
  EXPECT_LT(first.query.ErrorOver(0, 1), 1e-4);
  EXPECT_LT(second.query.ErrorOver(0, 1), 1e-4);
}

TEST_F(KvdepotCTest, CommittedTokensAreFetchedIntoABuffer) {
  for (int layer = 0; layer < kLayers; ++layer) {
    const MappedTokens tokens(layer, 0, 100);
    ASSERT_EQ(kvdepot_append(sessions_[0], layer, tokens.k.data(), tokens.v.data(), 100),
              KVDEPOT_OK);
  }
  ASSERT_EQ(kvdepot_commit(sessions_[0], 0, kTimeout), KVDEPOT_OK) << kvdepot_error_message();
  const MappedTokens expected(1, 10, 50);
  const size_t bytes = expected.k.size();
  kvdepot_buffer* buffer = nullptr;
  ASSERT_EQ(kvdepot_buffer_register(lease_, nullptr, 2 * bytes, kTimeout, &buffer), KVDEPOT_OK)
      << kvdepot_error_message();
  ASSERT_EQ(kvdepot_fetch(sessions_[0], 1, 10, 50, KVDEPOT_FP32, buffer, bytes, 0, kTimeout),
            KVDEPOT_OK)
      << kvdepot_error_message();
  const std::string data(static_cast<const char*>(kvdepot_buffer_data(buffer)), 2 * bytes);
  EXPECT_EQ(data.substr(bytes), expected.k);
  EXPECT_EQ(data.substr(0, bytes), expected.v);

  const auto expect_refused = [&](int code, int expected_code, const std::string& message) {
    EXPECT_EQ(code, expected_code);
    EXPECT_EQ(std::string(kvdepot_error_message()).substr(0, message.size()), message);
  };
  expect_refused(kvdepot_fetch(sessions_[0], 1, 60, 50, KVDEPOT_FP32, buffer, 0, bytes, kTimeout),
                 KVDEPOT_OUT_OF_RANGE, "token_count: 50, must be at most 40");
  expect_refused(
      kvdepot_fetch(sessions_[0], 1, 0, 50, KVDEPOT_FP32, buffer, 0, bytes + 16, kTimeout),
      KVDEPOT_INVALID_ARGUMENT, "v_range.size_bytes: 25600 from 25616, must be within");
  expect_refused(kvdepot_fetch(sessions_[0], 2, 0, 50, KVDEPOT_FP32, buffer, 0, 0, kTimeout),
                 KVDEPOT_INVALID_ARGUMENT, "layer: 2, the session has 2");
  expect_refused(kvdepot_fetch(sessions_[0], 0, 0, 50, 9, buffer, 0, 0, kTimeout),
                 KVDEPOT_INVALID_ARGUMENT, "dtype: 9");
  expect_refused(kvdepot_fetch(sessions_[0], 0, 0, 101, KVDEPOT_FP32, buffer, 0, 0, kTimeout),
                 KVDEPOT_INVALID_ARGUMENT, "token_count: 101, the buffer has room for 100");
  expect_refused(kvdepot_buffer_register(lease_, &ids_[0], 16, kTimeout, &buffer),
                 KVDEPOT_INVALID_ARGUMENT, "memory: set, must be NULL");
  EXPECT_EQ(kvdepot_buffer_close(buffer, kTimeout), KVDEPOT_OK);
}

TEST_F(KvdepotCTest, StructsOfANewerHeaderMayBeLarger) {
  struct Newer {
    kvdepot_query known;
    uint64_t unknown[3];
  };
  Call first(sessions_[0]);
  Call second(sessions_[1]);
  Newer queries[2] = {{first.c, {~0u, ~0u, ~0u}}, {second.c, {~0u, ~0u, ~0u}}};
  for (Newer& query : queries) query.known.struct_size = sizeof(Newer);
  ASSERT_EQ(kvdepot_append_attend(stream_, 0, 0, &queries[0].known, 2), KVDEPOT_OK)
      << kvdepot_error_message();
  EXPECT_LT(first.query.ErrorOver(0, 1), 1e-4);
  EXPECT_LT(second.query.ErrorOver(0, 1), 1e-4);
}

TEST_F(KvdepotCTest, WhatIsWrongIsNamedAndChangesNothing) {
  const Call first(sessions_[0]);
  Call second(sessions_[1]);
  second.c.v = nullptr;
  ExpectRefused(AppendAttend({first.c, second.c}), KVDEPOT_INVALID_ARGUMENT,
                "queries[1].v: NULL, must be set");
  second.c.v = second.token.v.data();
  second.c.struct_size = 8;
  ExpectRefused(AppendAttend({first.c, second.c}), KVDEPOT_INVALID_ARGUMENT,
                "queries[1].struct_size: 8, must be that of queries[0], 64");
  ExpectRefused(AppendAttend({second.c}), KVDEPOT_INVALID_ARGUMENT,
                "queries[0].struct_size: 8, must be at least 64");
  second.c.struct_size = sizeof(kvdepot_query);
  second.c.token_count = 0;
  ExpectRefused(AppendAttend({first.c, second.c}), KVDEPOT_INVALID_ARGUMENT,
                "queries[1].query_tokens: 0, must be 1..0");
  ExpectRefused(AppendAttend({first.c, first.c}), KVDEPOT_INVALID_ARGUMENT,
                "queries[1].session: " + ids_[0] + ", stands in these queries twice");
  ExpectRefused(kvdepot_append_attend(stream_, 9, 0, &first.c, 1), KVDEPOT_INVALID_ARGUMENT,
                "queries[0].layer: 9, the session has 2");
}

TEST_F(KvdepotCTest, ATokenThatIsNotFiniteRaisesTheFlagAndIsNotWritten) {
  Call call(sessions_[0]);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  call.token.k.replace(0, sizeof(nan), reinterpret_cast<const char*>(&nan), sizeof(nan));
  ASSERT_EQ(AppendAttend({call.c}), KVDEPOT_OK);
  EXPECT_TRUE(call.query.is_nan());
  EXPECT_EQ(kvdepot_session_error(sessions_[0]), KVDEPOT_INVALID_ARGUMENT);
  EXPECT_EQ(kvdepot_commit(sessions_[0], 0, kTimeout), KVDEPOT_INVALID_ARGUMENT);
  EXPECT_EQ(TokenCount(0), 0u);
}

}  // namespace
}  // namespace kvdepot
