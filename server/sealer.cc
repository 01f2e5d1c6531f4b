#include "server/sealer.h"

#include <memory>
#include <utility>

#include "absl/types/span.h"
#include "gpu/calibration_bytes.h"
#include "server/charged.h"
#include "server/reconstruction_error.h"

namespace kvdepot {
namespace {

void SampleError(EngineState* state, const EncodeJob& job) {
  const uint64_t interval = static_cast<uint64_t>(state->options.error_sample_interval);
  if (job.codec != Codec::kPlanes || interval == 0) return;
  const uint64_t number = state->planes_segments++;
  if (number % interval != 0) return;
  const uint64_t samples = job.source.blocks.size() * (kBlockTokens / kErrorSampleTokens);
  const int token = static_cast<int>(number / interval % samples) * kErrorSampleTokens;
  const ReconstructionError error =
      MeasureReconstruction(state->backend.get(), job.source, job.calibration, job.segment, token);
  state->observer->OnReconstructionError(error.k, error.v);
}

}  // namespace

// What is sealed, by which numbers, and into what.
struct Sealer::Job {
  SealTarget* target = nullptr;
  DueSegment due;
  std::vector<const std::byte*> blocks;
  std::shared_ptr<const LayerCalibration> calibration;
  Codec codec = Codec::kRaw;
  // Of SegmentBytes() until it is encoded.
  std::unique_ptr<StoredExtent> segment;

  const SessionSpec& spec() const { return target->session->spec(); }
  const LayerShape& shape() const { return spec().layers[target->layer]; }
  DType dtype() const { return spec().dtype; }
  SealBlocks source() const { return {shape(), dtype(), blocks}; }
  uint64_t exact_bytes() const { return ExactExtentBytes(shape(), dtype(), due.token_count); }
  // Whatever else the layer's calibration is good for, raw segments have none.
  const LayerCalibration* encoded_with() const {
    return codec == Codec::kRaw ? nullptr : calibration.get();
  }
  EncodeJob encoding() const {
    return {source(), codec, encoded_with(), spec().packkv, segment->data()};
  }
};

std::vector<SealTarget> AllLayers(Session* session) {
  std::vector<SealTarget> targets(session->layers().size());
  for (size_t i = 0; i < targets.size(); ++i) targets[i] = {session, i};
  return targets;
}

Sealer::Sealer(EngineState* state, std::vector<SealTarget> targets)
    : state_(state), targets_(std::move(targets)), made_(targets_.size()) {}

bool Sealer::RunTurn() {
  std::vector<Job> jobs = Gather();
  if (jobs.empty()) {
    // Of layers that were put off: nobody else has them, and their memory is charged.
    made_.assign(targets_.size(), nullptr);
    return false;
  }
  std::vector<EncodeJob> encodings;
  encodings.reserve(jobs.size());
  for (const Job& job : jobs) encodings.push_back(job.encoding());
  state_->backend->Encode(absl::MakeSpan(encodings));
  for (size_t i = 0; i < jobs.size(); ++i) {
    // An older segment of the layer was put off.
    if (jobs[i].target->session == nullptr) continue;
    if (encodings[i].in_range) {
      // Before the next job is sealed: its raw segment may need what is given back.
      jobs[i].segment->Shrink(encodings[i].size_bytes);
    } else if (!EncodeAsRaw(&jobs[i])) {
      continue;
    }
    SampleError(state_, jobs[i].encoding());
    Seal(&jobs[i]);
  }
  return true;
}

std::vector<Sealer::Job> Sealer::Gather() {
  std::vector<Job> jobs;
  uint64_t exact_bytes = 0;
  for (size_t i = 0; i < targets_.size(); ++i) {
    SealTarget& target = targets_[i];
    for (size_t index = 0; target.session != nullptr; ++index) {
      Job job;
      job.target = &target;
      {
        MutexLock lock(state_->mu);
        const Layer& layer = target.session->layers()[target.layer];
        if (index == layer.due_count()) break;
        job.due = layer.Due(index);
        job.calibration = layer.calibration();
      }
      exact_bytes += job.exact_bytes();
      if (!jobs.empty() && exact_bytes > state_->backend->encode_bytes_max()) return jobs;

      for (const ExtentRef& block : job.due.blocks) job.blocks.push_back(block->data());
      job.codec = target.session->spec().codec;
      absl::Status status;
      if (job.codec == Codec::kPlanes && job.calibration == nullptr) {
        if (made_[i] == nullptr) status = MakeCalibrations(i);
        job.calibration = made_[i];
      }
      if (status.ok()) status = Allocate(&job);
      if (status.ok()) {
        jobs.push_back(std::move(job));
        continue;
      }
      // What those before it free may be enough.
      if (!jobs.empty()) return jobs;
      PutOff(&target, std::move(status));
    }
  }
  return jobs;
}

absl::Status Sealer::MakeCalibrations(size_t first) {
  struct Wanted {
    size_t target = 0;
    MemoryCharge charge;
    DueSegment due;
    QueryMomentsRef moments;
    std::vector<const std::byte*> blocks;
  };
  std::vector<Wanted> wanted;
  uint64_t exact_bytes = 0;
  for (size_t i = first; i < targets_.size(); ++i) {
    const Session* const session = targets_[i].session;
    if (session == nullptr || session->spec().codec != Codec::kPlanes) continue;
    const LayerShape& shape = session->spec().layers[targets_[i].layer];
    Wanted next;
    next.target = i;
    {
      MutexLock lock(state_->mu);
      const Layer& layer = session->layers()[targets_[i].layer];
      if (layer.calibration() != nullptr || layer.due_count() == 0 || made_[i] != nullptr) continue;
      next.due = layer.Due(0);
      next.moments = layer.query_second_moments();
    }
    exact_bytes += ExactExtentBytes(shape, session->spec().dtype, next.due.token_count);
    if (!wanted.empty() && exact_bytes > state_->backend->encode_bytes_max()) break;
    absl::StatusOr<MemoryCharge> charge = state_->budget.Reserve(
        session->tenant(),
        CalibrationBytes(static_cast<size_t>(shape.kv_heads), static_cast<size_t>(shape.head_dim)));
    if (!charge.ok()) {
      if (wanted.empty()) return charge.status();
      break;
    }
    next.charge = *std::move(charge);
    for (const ExtentRef& block : next.due.blocks) next.blocks.push_back(block->data());
    wanted.push_back(std::move(next));
  }
  std::vector<CalibrationJob> jobs;
  for (const Wanted& each : wanted) {
    const SealTarget& target = targets_[each.target];
    const SessionSpec& spec = target.session->spec();
    CalibrationJob job{{spec.layers[target.layer], spec.dtype, each.blocks}, spec.profile, {}};
    if (each.moments != nullptr) job.query_second_moments = each.moments->value;
    jobs.push_back(job);
  }
  std::vector<LayerCalibration> calibrations = state_->backend->DeriveCalibrations(jobs);
  for (size_t k = 0; k < wanted.size(); ++k) {
    const auto made = std::make_shared<Charged<LayerCalibration>>(
        Charged<LayerCalibration>{std::move(wanted[k].charge), std::move(calibrations[k])});
    made_[wanted[k].target] = std::shared_ptr<const LayerCalibration>(made, &made->value);
  }
  return absl::OkStatus();
}

absl::Status Sealer::Allocate(Job* job) {
  absl::StatusOr<std::unique_ptr<StoredExtent>> extent =
      state_->AllocateOwn(job->target->session->tenant(), ExtentUse::kSealed,
                          SegmentBytes(job->shape(), job->dtype(), job->codec, job->encoded_with(),
                                       job->due.token_count, job->spec().packkv));
  if (!extent.ok()) return extent.status();
  job->segment = *std::move(extent);
  return absl::OkStatus();
}

bool Sealer::EncodeAsRaw(Job* job) {
  job->segment = nullptr;
  job->codec = Codec::kRaw;
  absl::Status status = Allocate(job);
  if (!status.ok()) {
    PutOff(job->target, std::move(status));
    return false;
  }
  EncodeJob encoding = job->encoding();
  state_->backend->Encode({&encoding, 1});
  return true;
}

void Sealer::Seal(Job* job) {
  const uint64_t stored_bytes = job->segment->charge.bytes();
  DroppedExtents dropped;
  {
    MutexLock lock(state_->mu);
    dropped = job->target->session->layers()[job->target->layer].Seal(std::move(job->segment),
                                                                      job->codec, job->calibration);
  }
  // The tail's memory goes now: a later job's raw segment may need it.
  job->due.blocks.clear();
  state_->observer->OnSealed({job->codec, job->due.token_count, job->exact_bytes(), stored_bytes,
                              state_->clock->Now() - job->due.since});
}

void Sealer::PutOff(SealTarget* target, absl::Status status) {
  target->session = nullptr;
  put_off_ = std::move(status);
  state_->observer->OnSealDeferred();
}

}  // namespace kvdepot
