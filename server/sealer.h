// How decided segments become sealed ones.
#ifndef KVDEPOT_SERVER_SEALER_H_
#define KVDEPOT_SERVER_SEALER_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/calibration.h"
#include "server/charged.h"
#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// A layer of a session that nobody else changes during a turn: it is in the hands of the caller
// (MutationRight), or in nobody's (background_seal.h).
struct SealTarget {
  Session* session = nullptr;
  size_t layer = 0;
};

std::vector<SealTarget> AllLayers(Session* session);

// Encodes what is due in some layers, turn after turn: in their order, the oldest segment of each
// first. A turn hands the backend as many segments as one call takes (encode_bytes_max) and there
// is memory for, and then frees their parts of the tails.
//
// A layer is put off where there is no memory for its next segment and no segment of this turn that
// may free some: the segment stays due, its tokens stay exact, and whoever appends next tries again
// before it stores anything. So an addition never fails for want of the memory that compressing it
// takes, and what is sealed in the end is the same.
//
// On the worker.
class Sealer {
 public:
  Sealer(EngineState* state, std::vector<SealTarget> targets);

  // One turn, a piece of work. False: nothing is due any more but in layers that were put off.
  bool RunTurn();

  // RESOURCE_EXHAUSTED, naming the limit, once a layer was put off.
  const absl::Status& put_off() const { return put_off_; }

 private:
  struct Job;

  // The turn's segments, with memory for each.
  std::vector<Job> Gather();
  // Makes the own calibration of targets_[first] and, in the same call of the backend, of those
  // behind it that will need one. RESOURCE_EXHAUSTED: there is no memory for the first.
  absl::Status MakeCalibrations(size_t first);
  // Takes the job's memory for its codec. Its layer's calibration is known.
  absl::Status Allocate(Job* job);
  // False: the layer was put off.
  bool EncodeAsRaw(Job* job);
  void Seal(Job* job);
  void PutOff(SealTarget* target, absl::Status status);

  EngineState* state_;
  // Those that were put off have no session any more.
  std::vector<SealTarget> targets_;
  // A target's own calibration, from when it is made until its first segment is sealed.
  std::vector<std::shared_ptr<const LayerCalibration>> made_;
  absl::Status put_off_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SEALER_H_
