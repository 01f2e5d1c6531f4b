#include "server/engine_fetch.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/engine_work.h"
#include "server/layer.h"
#include "server/request_check.h"

namespace kvdepot {
namespace {

class FetchWork final : public EngineWork<FetchedTokens> {
 public:
  FetchWork(EngineState* state, const Caller& caller, FetchRange range,
            Engine::Done<FetchedTokens> done)
      : EngineWork(state, Operation::kFetch, caller, std::move(done)), range_(std::move(range)) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    absl::Status status = range_.is_rest ? state()->backend->health() : state()->CheckAccepting();
    if (!status.ok()) return status;
    absl::StatusOr<std::shared_ptr<Session>> found =
        state()->Find(caller().tenant, range_.session_id);
    if (!found.ok()) return found.status();
    Session& session = **found;
    status = CheckLayer("layer", session, range_.layer);
    if (!status.ok()) return status;
    const Layer& layer = session.layers()[static_cast<size_t>(range_.layer)];
    status = CheckRange(layer);
    if (status.ok()) status = CheckRoom(layer);
    if (!status.ok()) return status;
    session.Touch(state()->clock->Now());

    shape_ = layer.shape();
    dtype_ = session.spec().dtype;
    calibration_ = layer.calibration();
    const uint64_t end = End(layer);
    const uint64_t token_bytes = 2 * shape_.row_values() * DTypeBytes(range_.dtype);
    const uint64_t tokens_max =
        std::max<uint64_t>(1, state()->options.fetch_bytes_max / token_bytes);
    count_ = std::min(end - range_.position, tokens_max);
    remaining_ = end - range_.position - count_;
    view_ = layer.View(range_.position, range_.position + count_);
    return absl::OkStatus();
  }

 private:
  uint64_t End(const Layer& layer) const {
    return range_.token_count == 0 ? layer.token_count() : range_.position + range_.token_count;
  }

  // Where it goes to buffers.
  absl::Status CheckRoom(const Layer& layer) const {
    if (range_.k.is_in_reply()) return absl::OkStatus();
    const uint64_t tokens = End(layer) - range_.position;
    const uint64_t row_values = layer.shape().row_values();
    absl::Status status =
        CheckBytes("k_range.size_bytes", range_.k.size_bytes, tokens, row_values, range_.dtype);
    if (!status.ok()) return status;
    return CheckBytes("v_range.size_bytes", range_.v.size_bytes, tokens, row_values, range_.dtype);
  }

  absl::Status CheckRange(const Layer& layer) const {
    if (range_.position < layer.first_held()) {
      return absl::OutOfRangeError(absl::StrCat("position: ", range_.position,
                                                ", must be at least ", layer.first_held(),
                                                ", the first that layer ", range_.layer, " holds"));
    }
    if (range_.position >= layer.token_count()) {
      return absl::OutOfRangeError(absl::StrCat("position: ", range_.position, ", must be below ",
                                                layer.token_count(), ", the tokens of layer ",
                                                range_.layer));
    }
    if (range_.token_count > layer.token_count() - range_.position) {
      return absl::OutOfRangeError(absl::StrCat(
          "token_count: ", range_.token_count, ", must be at most ",
          layer.token_count() - range_.position, " from position ", range_.position, " on"));
    }
    return absl::OkStatus();
  }

  absl::optional<absl::StatusOr<FetchedTokens>> Step() override {
    for (size_t i = 0; i < view_.runs.size(); ++i) {
      const TokenRun& run = view_.runs[i];
      if (run.form == TokenRun::Form::kExact) continue;
      absl::Status intact = state()->backend->VerifySegment(
          run.data, view_.extents[i]->memory->size_bytes(),
          {FormCodec(run.form), dtype_, shape_.kv_heads, shape_.head_dim, run.capacity});
      if (!intact.ok()) return intact;
    }
    FetchedTokens fetched;
    fetched.position = range_.position;
    fetched.token_count = count_;
    fetched.remaining_tokens = remaining_;
    std::byte* k = range_.k.data;
    std::byte* v = range_.v.data;
    if (range_.k.is_in_reply()) {
      fetched.k.resize(count_ * shape_.row_values() * DTypeBytes(range_.dtype));
      fetched.v.resize(fetched.k.size());
      k = reinterpret_cast<std::byte*>(&fetched.k[0]);
      v = reinterpret_cast<std::byte*>(&fetched.v[0]);
    }
    state()->backend->Decode(shape_, dtype_, calibration_.get(), view_.runs, range_.dtype,
                             range_.k.is_in_reply() ? MemorySpace::kHost : MemorySpace::kDevice, k,
                             v);
    return fetched;
  }

  void Release() override {
    view_ = {};
    calibration_ = nullptr;
  }

  const FetchRange range_;
  LayerShape shape_;
  DType dtype_ = DType::kBf16;
  std::shared_ptr<const LayerCalibration> calibration_;
  uint64_t count_ = 0;
  uint64_t remaining_ = 0;
  LayerView view_;
};

}  // namespace

void StartFetch(EngineState* state, const Caller& caller, FetchRange range,
                Engine::Done<FetchedTokens> done) {
  Submit<FetchedTokens>(
      state, std::make_unique<FetchWork>(state, caller, std::move(range), std::move(done)));
}

}  // namespace kvdepot
