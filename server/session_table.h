// All sessions, by id and by tenant and name.
#ifndef KVDEPOT_SERVER_SESSION_TABLE_H_
#define KVDEPOT_SERVER_SESSION_TABLE_H_

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/session.h"

namespace kvdepot {

// 128 random bits in lower-case hexadecimal. From the operating system: an id must be unique over
// all daemons and time.
std::string NewSessionId();

// Not thread-safe: the engine's lock guards it. A tenant sees its own sessions alone, and a session
// whose time has come is no longer found, though TakeExpired alone removes it. Sessions that are
// removed are returned, so that the caller frees their memory without its lock.
class SessionTable {
 public:
  using SessionRef = std::shared_ptr<Session>;

  // Null: no such session.
  SessionRef FindById(const std::string& tenant, const std::string& id, absl::Time now) const;
  SessionRef FindByName(const std::string& tenant, const std::string& name, absl::Time now) const;

  // Its id and its tenant's name for it are free.
  void Insert(SessionRef session);
  void Erase(const Session& session);
  std::vector<SessionRef> TakeExpired(absl::Time now);

  // Up to `limit` sessions of `tenant` whose names follow `after_name`, in order of name.
  std::vector<SessionRef> List(const std::string& tenant, const std::string& after_name,
                               size_t limit, absl::Time now) const;
  size_t CountOf(const std::string& tenant) const;
  size_t size() const { return by_id_.size(); }
  std::vector<SessionRef> All() const;

  // Aborts unless both indexes hold the same sessions.
  void CheckInvariants() const;

 private:
  std::map<std::string, SessionRef> by_id_;
  std::map<std::string, std::map<std::string, SessionRef>> by_tenant_and_name_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SESSION_TABLE_H_
