#include "server/work_queue.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvdepot {

absl::Status CheckWanted(const Caller& caller, absl::Time now) {
  if (caller.cancelled && caller.cancelled())
    return absl::CancelledError("cancelled by the caller");
  if (now >= caller.deadline) return absl::DeadlineExceededError("the deadline has passed");
  return absl::OkStatus();
}

WorkQueue::WorkQueue(int requests_per_tenant_max, Clock* clock)
    : requests_per_tenant_max_(static_cast<size_t>(requests_per_tenant_max)),
      clock_(clock),
      worker_([this] { RunWorker(); }) {}

WorkQueue::~WorkQueue() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    ready_.NotifyAll();
  }
  worker_.join();
}

absl::Status WorkQueue::Push(const Caller& caller, std::unique_ptr<Work>& work) {
  MutexLock lock(mu_);
  size_t requests = running_tenant_ != nullptr && *running_tenant_ == caller.tenant ? 1 : 0;
  const auto found = ring_.find(caller.tenant);
  if (found != ring_.end()) requests += found->second.size();
  if (requests >= requests_per_tenant_max_) {
    return absl::ResourceExhaustedError(absl::StrCat("queued_requests_per_tenant_max: ", requests,
                                                     " of ", requests_per_tenant_max_,
                                                     " requests are waiting"));
  }
  Request request{caller, std::move(work)};
  if (idle() && !stopping_ && request.work->IsBrief()) {
    RunTurn(std::move(request));
    return absl::OkStatus();
  }
  ring_[caller.tenant].push_back(std::move(request));
  ++queued_;
  if (running_tenant_ == nullptr) ready_.NotifyAll();
  return absl::OkStatus();
}

bool WorkQueue::WaitUntilIdle(absl::Time deadline) {
  MutexLock lock(mu_);
  while (!idle()) {
    if (!idle_.WaitUntil(mu_, deadline)) return idle();
  }
  return true;
}

WorkQueue::Request WorkQueue::TakeNext() {
  auto turn = ring_.upper_bound(last_tenant_);
  if (turn == ring_.end()) turn = ring_.begin();
  last_tenant_ = turn->first;
  Request request = std::move(turn->second.front());
  turn->second.pop_front();
  if (turn->second.empty()) ring_.erase(turn);
  --queued_;
  return request;
}

absl::Status WorkQueue::MayBegin(const Request& request, bool stopping) const {
  if (request.begun) return absl::OkStatus();
  if (stopping) return absl::UnavailableError("draining: the daemon is ending");
  return CheckWanted(request.caller, clock_->Now());
}

void WorkQueue::RunTurn(Request request) {
  running_tenant_ = &request.caller.tenant;
  const bool stopping = stopping_;
  mu_.Unlock();

  bool pieces_remain = false;
  const absl::Status may_begin = MayBegin(request, stopping);
  if (may_begin.ok()) {
    request.begun = true;
    pieces_remain = request.work->RunPiece();
  } else {
    request.work->Refuse(may_begin);
  }
  if (!pieces_remain) request.work.reset();

  mu_.Lock();
  running_tenant_ = nullptr;
  if (pieces_remain) {
    ++queued_;
    std::string tenant = request.caller.tenant;
    ring_[std::move(tenant)].push_back(std::move(request));
  }
  if (idle()) idle_.NotifyAll();
  if (queued_ > 0 || stopping_) ready_.NotifyAll();
}

void WorkQueue::RunWorker() {
  MutexLock lock(mu_);
  while (true) {
    while (running_tenant_ != nullptr || (queued_ == 0 && !stopping_)) ready_.Wait(mu_);
    if (queued_ == 0) break;
    RunTurn(TakeNext());
  }
}

}  // namespace kvdepot
