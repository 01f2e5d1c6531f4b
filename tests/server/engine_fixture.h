// An engine on the CPU with a clock that stands still, and its calls made synchronous.
#ifndef KVDEPOT_TESTS_SERVER_ENGINE_FIXTURE_H_
#define KVDEPOT_TESTS_SERVER_ENGINE_FIXTURE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "gpu/backend.h"
#include "server/engine.h"
#include "server/mutex.h"
#include "tests/server/fake_clock.h"
#include "tests/server/session_model.h"

namespace kvdepot {

// The result of one call that is still to come.
template <typename T>
class Pending {
 public:
  Engine::Done<T> done() {
    return [state = state_](absl::StatusOr<T> result) {
      MutexLock lock(state->mu);
      state->result = std::move(result);
      state->changed.NotifyAll();
    };
  }
  absl::StatusOr<T> Wait() {
    MutexLock lock(state_->mu);
    while (!state_->result.has_value()) state_->changed.Wait(state_->mu);
    return *std::move(state_->result);
  }

 private:
  struct State {
    Mutex mu;
    CondVar changed;
    absl::optional<absl::StatusOr<T>> result ABSL_GUARDED_BY(mu);
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// Sums of what the engine reported.
class CountingObserver final : public EngineObserver {
 public:
  struct Counts {
    int operations = 0;
    int failed_operations = 0;
    uint64_t appended = 0;
    int raw_segments = 0;
    int planes_segments = 0;
    int packkv_segments = 0;
    uint64_t sealed_tokens = 0;
    int deferred_seals = 0;
    std::vector<std::pair<double, double>> errors;
    absl::Duration seal_lag_max;
    std::vector<std::pair<MappingOperation, absl::StatusCode>> mapping_errors;
  };
  Counts counts() {
    MutexLock lock(mu_);
    return counts_;
  }

  void OnOperation(Operation operation, absl::StatusCode code,
                   const OperationTimes& times) override;
  void OnAppended(uint64_t tokens) override;
  void OnSealed(const SealedSegment& segment) override;
  void OnReconstructionError(double k_error, double v_error) override;
  void OnSealDeferred() override;
  void OnMappingError(MappingOperation operation, absl::StatusCode code) override;

 private:
  Mutex mu_;
  Counts counts_ ABSL_GUARDED_BY(mu_);
};

// One engine. Calls are those of one tenant unless another caller is set. Sessions are in fp32.
class TestEngine {
 public:
  explicit TestEngine(const EngineOptions& options = {});
  // On a backend of the test's own.
  TestEngine(const EngineOptions& options, std::unique_ptr<Backend> backend);

  Engine* operator->() { return engine_.get(); }
  FakeClock& clock() { return clock_; }
  CalibrationStore& calibrations() { return calibrations_; }
  CountingObserver::Counts counts() { return observer_.counts(); }
  Caller& caller() { return caller_; }

  absl::StatusOr<SessionInfo> Create(const SessionSpec& spec);
  SessionInfo Get(const std::string& session_id);

  // One Append call with these chunks of one layer; the state after Finish.
  absl::StatusOr<LayerState> Append(const SessionInfo& session, int layer, uint64_t position,
                                    const std::vector<ModelTokens>& chunks);
  absl::StatusOr<LayerState> AppendChunk(Engine::Addition& addition, const TokenChunk& chunk);
  absl::StatusOr<std::vector<std::pair<int, LayerState>>> Finish(Engine::Addition& addition);

  absl::StatusOr<std::vector<AttendResult>> Attend(int layer, std::vector<AttendQuery> queries);
  absl::StatusOr<std::vector<AttendResult>> Decode(int layer, std::vector<DecodeStep> steps);
  absl::StatusOr<FetchedTokens> Fetch(const std::string& session_id, int layer, uint64_t position,
                                      uint64_t token_count);
  absl::StatusOr<SessionInfo> Truncate(const SessionInfo& session, uint64_t token_count);
  absl::StatusOr<SessionInfo> Seal(const SessionInfo& session);

  // All tokens that the layer holds, by as many Fetch calls as it takes.
  ModelTokens FetchAll(const std::string& session_id, int layer, uint64_t position = 0);

  // Ends the engine; the calls that are left get their result.
  void Stop() { engine_.reset(); }

 private:
  FakeClock clock_;
  CalibrationStore calibrations_;
  CountingObserver observer_;
  Caller caller_;
  std::unique_ptr<Engine> engine_;
};

// A session of `layers` equal layers in fp32.
SessionSpec Spec(const std::string& name, Codec codec, const LayerShape& shape, int layers = 1);

TokenChunk Chunk(int layer, uint64_t position, const LayerShape& shape, const ModelTokens& tokens);
DecodeStep Step(const SessionInfo& session, int layer, uint64_t position, const LayerShape& shape,
                const ModelTokens& tokens, const std::vector<float>& q);
// Queries whose last stands at token_count - 1.
AttendQuery Query(const std::string& session_id, const LayerShape& shape,
                  const std::vector<float>& q, uint64_t token_count = 0);

// Random queries of `query_tokens` tokens.
std::vector<float> RandomQueries(std::mt19937& random, const LayerShape& shape,
                                 uint64_t query_tokens);

// Largest difference between an output and what it should be.
double LargestError(const std::string& output, const std::vector<double>& expected);

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_ENGINE_FIXTURE_H_
