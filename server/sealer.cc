#include "server/sealer.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "server/calibration_bytes.h"
#include "server/charged.h"
#include "server/reconstruction_error.h"

namespace kvdepot {
namespace {

// What is sealed, by which numbers, and into what.
struct SealJob {
  LayerShape shape;
  DType dtype = DType::kBf16;
  DueSegment due;
  std::vector<const std::byte*> blocks;
  std::shared_ptr<const LayerCalibration> calibration;
  Codec codec = Codec::kRaw;
  ExtentRef segment;

  SealBlocks source() const { return {shape, dtype, blocks}; }
};

// Memory of the segment's size, and its bytes. False: the values leave the range of `planes`.
absl::StatusOr<bool> Encode(EngineState* state, const std::string& tenant, SealJob& job) {
  const LayerCalibration* calibration =
      job.codec == Codec::kPlanes ? job.calibration.get() : nullptr;
  absl::StatusOr<std::vector<ExtentRef>> extents = state->Allocate(
      tenant, ExtentUse::kSealed,
      {SegmentBytes(job.shape, job.dtype, job.codec, calibration, job.due.token_count)});
  if (!extents.ok()) return extents.status();
  job.segment = (*extents)[0];
  return state->backend->Encode(job.source(), job.codec, calibration, job.segment->data());
}

// The layer's own calibration, made from its first segment.
absl::StatusOr<std::shared_ptr<const LayerCalibration>> MakeCalibration(
    EngineState* state, const Session& session, const QueryMomentsRef& moments,
    const SealJob& job) {
  absl::StatusOr<MemoryCharge> charge = state->budget.Reserve(
      session.tenant(), CalibrationBytes(static_cast<size_t>(job.shape.kv_heads),
                                         static_cast<size_t>(job.shape.head_dim)));
  if (!charge.ok()) return charge.status();
  absl::Span<const float> values;
  if (moments != nullptr) values = moments->value;
  const auto made = std::make_shared<Charged<LayerCalibration>>(Charged<LayerCalibration>{
      *std::move(charge),
      state->backend->DeriveCalibration(job.source(), session.spec().profile, values)});
  return std::shared_ptr<const LayerCalibration>(made, &made->value);
}

// The segment, in whatever codec it takes. RESOURCE_EXHAUSTED: no memory for it, or for the
// calibration that it needs.
absl::Status MakeSegment(EngineState* state, const Session& session, const QueryMomentsRef& moments,
                         SealJob& job) {
  if (job.codec == Codec::kPlanes && job.calibration == nullptr) {
    absl::StatusOr<std::shared_ptr<const LayerCalibration>> made =
        MakeCalibration(state, session, moments, job);
    if (!made.ok()) return made.status();
    job.calibration = *std::move(made);
  }
  absl::StatusOr<bool> encoded = Encode(state, session.tenant(), job);
  if (encoded.ok() && !*encoded) {
    job.segment = nullptr;
    job.codec = Codec::kRaw;
    encoded = Encode(state, session.tenant(), job);
  }
  return encoded.status();
}

void SampleError(EngineState* state, const SealJob& job) {
  const uint64_t interval = static_cast<uint64_t>(state->options.error_sample_interval);
  if (job.codec != Codec::kPlanes || interval == 0) return;
  if (state->planes_segments++ % interval != 0) return;
  const ReconstructionError error = MeasureReconstruction(
      state->backend.get(), job.source(), job.calibration.get(), job.segment->data());
  state->observer->OnReconstructionError(error.k, error.v);
}

}  // namespace

absl::StatusOr<bool> SealNext(EngineState* state, Session* session, size_t layer) {
  SealJob job;
  QueryMomentsRef query_second_moments;
  {
    MutexLock lock(state->mu);
    const Layer& from = session->layers()[layer];
    if (!from.has_due()) return false;
    job.due = from.NextDue();
    job.calibration = from.calibration();
    query_second_moments = from.query_second_moments();
  }
  job.shape = session->spec().layers[layer];
  job.dtype = session->spec().dtype;
  job.codec = session->spec().codec;
  for (const ExtentRef& block : job.due.blocks) job.blocks.push_back(block->data());

  if (absl::Status status = MakeSegment(state, *session, query_second_moments, job); !status.ok()) {
    state->observer->OnSealDeferred();
    return status;
  }
  SampleError(state, job);

  const uint64_t stored_bytes = job.segment->charge.bytes();
  DroppedExtents dropped;
  {
    MutexLock lock(state->mu);
    dropped = session->layers()[layer].Seal(std::move(job.segment), job.codec, job.calibration);
  }
  state->observer->OnSealed(job.codec, job.due.token_count,
                            ExactExtentBytes(job.shape, job.dtype, job.due.token_count),
                            stored_bytes);
  return true;
}

}  // namespace kvdepot
