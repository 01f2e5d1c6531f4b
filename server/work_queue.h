// The device's worker thread and what waits for it: bounded for each tenant, tenants taken in turn,
// one piece of a request at a time.
#ifndef KVDEPOT_SERVER_WORK_QUEUE_H_
#define KVDEPOT_SERVER_WORK_QUEUE_H_

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/mutex.h"
#include "server/session_types.h"

namespace kvdepot {

// One request.
class Work {
 public:
  virtual ~Work() = default;
  // Does one piece of bounded length. True: pieces remain.
  virtual bool RunPiece() = 0;
  // Instead of the first piece: the work must not begin.
  virtual void Refuse(const absl::Status& status) = 0;
  // Whether it is one piece, short enough for the thread that pushes it.
  virtual bool IsBrief() const { return false; }
};

// CANCELLED or DEADLINE_EXCEEDED if nobody waits for the result any more.
absl::Status CheckWanted(const Caller& caller, absl::Time now);

// Thread-safe.
//
// Tenants with work form a ring; each turn runs one piece of one request, which then goes behind
// the tenant's other requests, so that a long one holds up neither other tenants nor its own
// tenant's short ones. Pieces never run side by side. A brief request that finds nothing waiting or
// running is done by the thread that pushes it: waking the worker would take longer than the work.
class WorkQueue {
 public:
  WorkQueue(int requests_per_tenant_max, Clock* clock);
  // Refuses what has not begun with UNAVAILABLE, ends what has, then the thread.
  ~WorkQueue();

  // Takes `work`, or leaves it where it is: RESOURCE_EXHAUSTED naming
  // queued_requests_per_tenant_max. Right before the first piece the caller is asked (CheckWanted)
  // whether it still wants it. Brief work may be done before this returns; no lock is held then.
  absl::Status Push(const Caller& caller, std::unique_ptr<Work>& work);

  // Waits until no request is left. False: `deadline` came first.
  bool WaitUntilIdle(absl::Time deadline);

 private:
  struct Request {
    Caller caller;
    std::unique_ptr<Work> work;
    bool begun = false;
  };
  using Ring = std::map<std::string, std::deque<Request>>;

  void RunWorker();
  // The next request in turn, taken out of its queue.
  Request TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // OK, or why `request` must not begin.
  absl::Status MayBegin(const Request& request, bool stopping) const;
  // One turn of `request`, which goes back to its queue if pieces remain. Nothing else runs.
  // Unlocks meanwhile.
  void RunTurn(Request request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return queued_ == 0 && running_tenant_ == nullptr;
  }

  const size_t requests_per_tenant_max_;
  Clock* const clock_;

  Mutex mu_;
  // For the worker: there is something to run, and nothing runs; or the end has come.
  CondVar ready_;
  // For whoever waits until all is done.
  CondVar idle_;
  // Tenants with waiting requests; none is empty.
  Ring ring_ ABSL_GUARDED_BY(mu_);
  std::string last_tenant_ ABSL_GUARDED_BY(mu_);
  size_t queued_ ABSL_GUARDED_BY(mu_) = 0;
  // Whose request runs, if one does.
  const std::string* running_tenant_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread worker_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_WORK_QUEUE_H_
