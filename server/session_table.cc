#include "server/session_table.h"

#include <cstdint>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot {

std::string NewSessionId() {
  std::random_device random;
  std::string id;
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&id, absl::Hex(static_cast<uint32_t>(random()), absl::kZeroPad8));
  }
  return id;
}

SessionTable::SessionRef SessionTable::FindById(const std::string& tenant, const std::string& id,
                                                absl::Time now) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return nullptr;
  const SessionRef& session = found->second;
  return session->tenant() == tenant && !session->HasExpired(now) ? session : nullptr;
}

SessionTable::SessionRef SessionTable::FindByName(const std::string& tenant,
                                                  const std::string& name, absl::Time now) const {
  const auto names = by_tenant_and_name_.find(tenant);
  if (names == by_tenant_and_name_.end()) return nullptr;
  const auto found = names->second.find(name);
  if (found == names->second.end() || found->second->HasExpired(now)) return nullptr;
  return found->second;
}

void SessionTable::Insert(SessionRef session) {
  const bool new_name =
      by_tenant_and_name_[session->tenant()].emplace(session->spec().name, session).second;
  KVDEPOT_CHECK(new_name);
  const bool new_id = by_id_.emplace(session->id(), std::move(session)).second;
  KVDEPOT_CHECK(new_id);
}

void SessionTable::Erase(const Session& session) {
  const auto names = by_tenant_and_name_.find(session.tenant());
  KVDEPOT_CHECK(names != by_tenant_and_name_.end());
  names->second.erase(session.spec().name);
  if (names->second.empty()) by_tenant_and_name_.erase(names);
  // Last, as it may be what keeps `session` alive.
  by_id_.erase(by_id_.find(session.id()));
}

std::vector<SessionTable::SessionRef> SessionTable::TakeExpired(absl::Time now) {
  std::vector<SessionRef> expired;
  for (const auto& [id, session] : by_id_) {
    if (session->HasExpired(now)) expired.push_back(session);
  }
  for (const SessionRef& session : expired) Erase(*session);
  return expired;
}

std::vector<SessionTable::SessionRef> SessionTable::List(const std::string& tenant,
                                                         const std::string& after_name,
                                                         size_t limit, absl::Time now) const {
  std::vector<SessionRef> sessions;
  const auto names = by_tenant_and_name_.find(tenant);
  if (names == by_tenant_and_name_.end()) return sessions;
  for (auto it = names->second.upper_bound(after_name); it != names->second.end(); ++it) {
    if (sessions.size() == limit) break;
    if (!it->second->HasExpired(now)) sessions.push_back(it->second);
  }
  return sessions;
}

size_t SessionTable::CountOf(const std::string& tenant) const {
  const auto names = by_tenant_and_name_.find(tenant);
  return names == by_tenant_and_name_.end() ? 0 : names->second.size();
}

std::vector<SessionTable::SessionRef> SessionTable::All() const {
  std::vector<SessionRef> sessions;
  for (const auto& [id, session] : by_id_) sessions.push_back(session);
  return sessions;
}

void SessionTable::CheckInvariants() const {
  size_t named = 0;
  for (const auto& [tenant, names] : by_tenant_and_name_) {
    KVDEPOT_CHECK(!names.empty());
    for (const auto& [name, session] : names) {
      KVDEPOT_CHECK(session->tenant() == tenant && session->spec().name == name);
      const auto found = by_id_.find(session->id());
      KVDEPOT_CHECK(found != by_id_.end() && found->second == session);
      ++named;
    }
  }
  KVDEPOT_CHECK(named == by_id_.size());
}

}  // namespace kvdepot
