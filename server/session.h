// One session: what was asked for, its layers, and who may change it.
#ifndef KVDEPOT_SERVER_SESSION_H_
#define KVDEPOT_SERVER_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/calibration_store.h"
#include "server/charged.h"
#include "server/layer.h"
#include "server/segment.h"
#include "server/session_types.h"

namespace kvdepot {

struct Directory;

// The lease that may append to a session in its own process.
struct MappedWriter {
  std::string lease_id;
  // What it asked for.
  uint64_t room_tokens = 0;
  // Extents that it was handed and whose tokens are not committed, of every layer, in the order in
  // which Layer::ExtentsFor asks for them.
  std::vector<std::vector<ExtentRef>> room;
};

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
  void BeginMutation() {
    in_mutation_ = true;
    ++mutation_;
  }
  void EndMutation() { in_mutation_ = false; }
  // Number of the last one.
  uint64_t mutation() const { return mutation_; }

  // What a Commit has left due: it waits for whoever has the session in mutation, or is being
  // sealed (background_seal.h).
  enum class BackgroundSeal { kNone, kWaits, kRuns };
  BackgroundSeal background_seal() const { return background_seal_; }
  void set_background_seal(BackgroundSeal seal) { background_seal_ = seal; }
  // If anything is due, it is sealed once the mutation in flight has ended.
  void WantBackgroundSeal() {
    if (background_seal_ == BackgroundSeal::kNone && due_bytes() > 0) {
      background_seal_ = BackgroundSeal::kWaits;
    }
  }

  // No longer in the table: what is still in flight ends, and nothing new begins.
  bool deleted() const { return deleted_; }
  void set_deleted() { deleted_ = true; }

  // While there is one, nobody else changes the session.
  absl::optional<MappedWriter>& writer() { return writer_; }
  const absl::optional<MappedWriter>& writer() const { return writer_; }
  // A writer's lease ended, and its process may still write behind the committed tokens: no token
  // may go there before TakeOver.
  bool left_by_writer() const { return left_by_writer_; }
  void set_left_by_writer(bool left) { left_by_writer_ = left; }

  // Of leases, whose right has not ended, that map the session: it does not expire meanwhile.
  void AddMapping() { ++mappings_; }
  void RemoveMapping() { --mappings_; }

  // Null: nobody holds it any more.
  std::shared_ptr<const Directory> last_directory() const { return last_directory_.lock(); }
  void set_last_directory(const std::shared_ptr<const Directory>& directory) {
    last_directory_ = directory;
  }
  uint64_t NextDirectoryVersion() { return ++directory_version_; }

  void Touch(absl::Time now) { last_use_ = now; }
  absl::Time expire_time() const { return last_use_ + spec_.time_to_live; }
  // A mutation in flight keeps a session alive, and so does a mapping; readers keep what they read.
  bool HasExpired(absl::Time now) const {
    return !in_mutation_ && mappings_ == 0 && now >= expire_time();
  }

  SessionInfo Info() const;
  // All values held, in the session's dtype.
  uint64_t logical_bytes() const;
  // Bytes charged for them.
  uint64_t stored_bytes() const;
  // Of the exact tokens that are due: segments of them take about as much at most.
  uint64_t due_bytes() const;

 private:
  const std::string id_;
  const std::string tenant_;
  SessionSpec spec_;
  const absl::Time create_time_;
  absl::Time last_use_;
  uint64_t generation_ = 1;
  bool in_mutation_ = false;
  uint64_t mutation_ = 0;
  BackgroundSeal background_seal_ = BackgroundSeal::kNone;
  bool deleted_ = false;
  absl::optional<MappedWriter> writer_;
  bool left_by_writer_ = false;
  int mappings_ = 0;
  std::weak_ptr<const Directory> last_directory_;
  uint64_t directory_version_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SESSION_H_
