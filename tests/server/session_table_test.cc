#include "server/session_table.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

namespace kvdepot {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1800000000);

std::shared_ptr<Session> NewSession(const std::string& tenant, const std::string& name,
                                    absl::Duration time_to_live = absl::InfiniteDuration()) {
  SessionSpec spec;
  spec.name = name;
  spec.layers = {{1, 1, 64, 0, 0}};
  spec.time_to_live = time_to_live;
  return std::make_shared<Session>(NewSessionId(), tenant, spec, nullptr,
                                   std::vector<QueryMomentsRef>(), kStart);
}

std::vector<std::string> Names(const std::vector<std::shared_ptr<Session>>& sessions) {
  std::vector<std::string> names;
  for (const auto& session : sessions) names.push_back(session->spec().name);
  return names;
}

using Strings = std::vector<std::string>;

TEST(SessionTableTest, IdsAreLongAndDiffer) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) ids.insert(NewSessionId());
  EXPECT_EQ(ids.size(), 1000u);
  EXPECT_EQ(ids.begin()->size(), 32u);
  EXPECT_EQ(ids.begin()->find_first_not_of("0123456789abcdef"), std::string::npos);
}

TEST(SessionTableTest, ATenantFindsItsOwnSessionsAlone) {
  SessionTable table;
  const auto session = NewSession("a", "chat");
  table.Insert(session);
  table.Insert(NewSession("b", "chat"));
  EXPECT_EQ(table.FindById("a", session->id(), kStart), session);
  EXPECT_EQ(table.FindById("b", session->id(), kStart), nullptr);
  EXPECT_EQ(table.FindByName("a", "chat", kStart), session);
  EXPECT_NE(table.FindByName("b", "chat", kStart), session);
  EXPECT_EQ(table.FindByName("c", "chat", kStart), nullptr);
  EXPECT_EQ(table.CountOf("a"), 1u);
  EXPECT_EQ(table.size(), 2u);
  table.CheckInvariants();
}

TEST(SessionTableTest, AnErasedSessionsNameIsFree) {
  SessionTable table;
  const auto first = NewSession("a", "chat");
  table.Insert(first);
  table.Erase(*first);
  EXPECT_EQ(table.FindById("a", first->id(), kStart), nullptr);
  EXPECT_EQ(table.CountOf("a"), 0u);
  table.Insert(NewSession("a", "chat"));
  table.CheckInvariants();
}

TEST(SessionTableTest, PagesFollowTheNames) {
  SessionTable table;
  for (const char* name : {"d", "b", "a", "c"}) table.Insert(NewSession("t", name));
  EXPECT_EQ(Names(table.List("t", "", 2, kStart)), Strings({"a", "b"}));
  EXPECT_EQ(Names(table.List("t", "b", 9, kStart)), Strings({"c", "d"}));
  EXPECT_EQ(Names(table.List("t", "d", 9, kStart)), Strings());
  EXPECT_EQ(Names(table.List("other", "", 9, kStart)), Strings());
}

TEST(SessionTableTest, ASessionExpiresItsTimeAfterItsLastUse) {
  SessionTable table;
  const auto session = NewSession("a", "short", absl::Seconds(10));
  table.Insert(session);
  table.Insert(NewSession("a", "for ever"));
  session->Touch(kStart + absl::Seconds(5));
  const absl::Time end = kStart + absl::Seconds(15);
  EXPECT_TRUE(table.TakeExpired(end - absl::Nanoseconds(1)).empty());
  EXPECT_EQ(table.FindById("a", session->id(), end), nullptr);
  EXPECT_EQ(table.FindByName("a", "short", end), nullptr);
  EXPECT_EQ(Names(table.List("a", "", 9, end)), Strings({"for ever"}));
  EXPECT_EQ(Names(table.TakeExpired(end)), Strings({"short"}));
  EXPECT_EQ(table.size(), 1u);
  table.CheckInvariants();
}

TEST(SessionTableTest, AMutationInFlightKeepsASessionAlive) {
  SessionTable table;
  const auto session = NewSession("a", "busy", absl::Seconds(1));
  table.Insert(session);
  session->BeginMutation();
  EXPECT_TRUE(table.TakeExpired(kStart + absl::Hours(1)).empty());
  session->EndMutation();
  EXPECT_EQ(table.TakeExpired(kStart + absl::Hours(1)).size(), 1u);
}

}  // namespace
}  // namespace kvdepot
