// One session: what was asked for, its layers, and who may change it.
#ifndef KVDEPOT_SERVER_SESSION_H_
#define KVDEPOT_SERVER_SESSION_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/calibration_store.h"
#include "server/charged.h"
#include "server/layer.h"
#include "server/session_types.h"

namespace kvdepot {

// Not thread-safe: the engine's lock guards what is not const. Shared, because calls in flight
// finish on a session that was deleted meanwhile.
class Session {
 public:
  // `layout` is null for raw and for a session that makes its own calibration. `moments`, none or
  // one entry a layer, are the spec's query_second_moments, which it no longer holds.
  Session(std::string id, std::string tenant, SessionSpec spec,
          const std::shared_ptr<const ModelLayout>& layout, std::vector<QueryMomentsRef> moments,
          absl::Time now);

  const std::string& id() const { return id_; }
  const std::string& tenant() const { return tenant_; }
  const SessionSpec& spec() const { return spec_; }
  std::vector<Layer>& layers() { return layers_; }
  const std::vector<Layer>& layers() const { return layers_; }

  // What every layer has.
  uint64_t committed_token_count() const;

  uint64_t generation() const { return generation_; }
  void BumpGeneration() { ++generation_; }

  // One mutation at a time: set while somebody holds the right to it (mutation_right.h).
  bool in_mutation() const { return in_mutation_; }
  void set_in_mutation(bool in_mutation) { in_mutation_ = in_mutation; }

  // No longer in the table: what is still in flight ends, and nothing new begins.
  bool deleted() const { return deleted_; }
  void set_deleted() { deleted_ = true; }

  void Touch(absl::Time now) { last_use_ = now; }
  absl::Time expire_time() const { return last_use_ + spec_.time_to_live; }
  // A mutation in flight keeps a session alive; readers keep what they read.
  bool HasExpired(absl::Time now) const { return !in_mutation_ && now >= expire_time(); }

  SessionInfo Info() const;
  // All values held, in the session's dtype.
  uint64_t logical_bytes() const;
  // Bytes charged for them.
  uint64_t stored_bytes() const;

 private:
  const std::string id_;
  const std::string tenant_;
  SessionSpec spec_;
  const absl::Time create_time_;
  absl::Time last_use_;
  uint64_t generation_ = 1;
  bool in_mutation_ = false;
  bool deleted_ = false;
  std::vector<Layer> layers_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SESSION_H_
