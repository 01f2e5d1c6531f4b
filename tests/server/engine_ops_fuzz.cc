// A list of operations, read from the input, runs on an engine and on a model in plain vectors.
// After each the engine's invariants are checked, and what it holds is compared with the model.
//
// The backend is the real one; limits are small, so that short inputs reach sealing, truncated
// segments and a full budget.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/check.h"
#include "tests/server/batching_backend.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

// Bytes of the input, then zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return next_ >= size_; }
  uint8_t Byte() { return empty() ? 0 : data_[next_++]; }
  // 0..limit.
  uint64_t UpTo(uint64_t limit) { return (Byte() * 256u + Byte()) % (limit + 1); }

 private:
  const uint8_t* const data_;
  const size_t size_;
  size_t next_ = 0;
};

constexpr LayerShape kShape = {1, 1, 64, 0, 0};
// Of one addition's chunk.
constexpr uint64_t kTokensMax = 300;

EngineOptions SmallOptions(Input& input) {
  EngineOptions options;
  options.budget_bytes = (1 + input.UpTo(40)) << 15;
  options.decode_seal_tokens = 64;
  options.prompt_tokens_min = 100;
  options.segment_tokens_max = 128;
  options.tokens_per_session_max = 1200;
  options.fetch_bytes_max = 1 << 17;
  options.work_piece_row_tokens = 500;
  options.error_sample_interval = 3;
  return options;
}

// Sealing one by one, two or three, or all that is due at once, as the budget has it.
std::unique_ptr<Backend> MakeBackend(const EngineOptions& options) {
  constexpr size_t kEncodeBytesMax[] = {1, 160 << 10, 1 << 30};
  return std::make_unique<BatchingBackend>(kEncodeBytesMax[(options.budget_bytes >> 15) % 3],
                                           nullptr);
}

struct ModelSession {
  explicit ModelSession(const SessionInfo& session_info) : info(session_info) {
    for (const LayerShape& shape : info.spec.layers) layers.emplace_back(shape);
  }
  uint64_t committed() const { return std::min(layers[0].token_count(), layers[1].token_count()); }
  bool exact() const { return info.spec.codec == Codec::kRaw; }

  SessionInfo info;
  std::vector<LayerModel> layers;
};

class Operations {
 public:
  explicit Operations(Input& input) : Operations(input, SmallOptions(input)) {}
  Operations(Input& input, const EngineOptions& options)
      : input_(input), engine_(options, MakeBackend(options)) {
    // Made once, as random numbers take longer than all else here.
    static const ModelTokens* const kPool = [] {
      std::mt19937 random(1);
      return new ModelTokens(RandomTokens(random, kShape, 4 * kTokensMax));
    }();
    pool_.Append(0, *kPool);
  }

  void RunOne() {
    const size_t index = input_.Byte() % 2;
    ModelSession* session = Session(index);
    switch (input_.Byte() % 10) {
      case 0:
        KVDEPOT_CHECK(engine_->DeleteSession(engine_.caller(), session->info.id).ok());
        sessions_.erase(index);
        break;
      case 1:
        Truncate(*session);
        break;
      case 2:
        Seal(*session);
        break;
      case 3:
      case 4:
        Decode(*session);
        break;
      case 5:
        Attend(*session);
        break;
      case 6:
        engine_.clock().Advance(absl::Seconds(input_.Byte()));
        engine_->ExpireSessions();
        ForgetExpired();
        break;
      default:
        Append(*session);
    }
    engine_->CheckInvariants();
    const auto touched = sessions_.find(index);
    if (touched != sessions_.end()) Compare(touched->second);
  }

  void CompareAll() {
    for (auto& [index, session] : sessions_) Compare(session);
  }

 private:
  ModelSession* Session(size_t index) {
    auto found = sessions_.find(index);
    if (found != sessions_.end()) return &found->second;
    const LayerShape windowed = {1, 2, 64, 0, 1 + static_cast<int>(input_.UpTo(200))};
    SessionSpec spec = Spec(absl::StrCat("session", index), kCodecs[input_.Byte() % kCodecCount],
                            {1, 1, 64, 0, 0}, 2);
    if (input_.Byte() % 2 == 0) spec.layers[1] = windowed;
    if (input_.Byte() % 4 == 0) spec.time_to_live = absl::Seconds(200);
    const absl::StatusOr<SessionInfo> created = engine_.Create(spec);
    KVDEPOT_CHECK(created.ok());
    return &sessions_.emplace(index, ModelSession(*created)).first->second;
  }

  void ForgetExpired() {
    for (auto it = sessions_.begin(); it != sessions_.end();) {
      const std::string& id = it->second.info.id;
      it = engine_->GetSession(engine_.caller(), id, "").ok() ? std::next(it) : sessions_.erase(it);
    }
  }

  ModelTokens Tokens(uint64_t token_count) {
    return pool_.Slice(random_() % (3 * kTokensMax), token_count);
  }

  // Without memory nothing changes; any other error is a bug.
  static bool Succeeded(const absl::Status& status) {
    KVDEPOT_CHECK(status.ok() || status.code() == absl::StatusCode::kResourceExhausted);
    return status.ok();
  }

  void Truncate(ModelSession& session) {
    const uint64_t kept = input_.UpTo(session.committed());
    const absl::StatusOr<SessionInfo> truncated = engine_.Truncate(session.info, kept);
    // A window may have moved on.
    if (truncated.status().code() == absl::StatusCode::kOutOfRange) return;
    if (!Succeeded(truncated.status())) return;
    KVDEPOT_CHECK(truncated->generation == session.info.generation + 1);
    session.info = *truncated;
    for (LayerModel& layer : session.layers) layer.Truncate(kept);
  }

  void Seal(ModelSession& session) {
    const absl::StatusOr<SessionInfo> sealed = engine_.Seal(session.info);
    if (!Succeeded(sealed.status())) return;
    for (const LayerState& layer : sealed->layers) {
      const uint64_t tail_begin = std::max<uint64_t>(layer.sealed_end, kSinkTokens);
      KVDEPOT_CHECK(layer.token_count < tail_begin + 64 + 64);
    }
  }

  void Append(ModelSession& session) {
    auto addition =
        engine_->BeginAppend(engine_.caller(), session.info.id, session.info.generation);
    KVDEPOT_CHECK(addition.ok());
    for (int chunks = 1 + input_.Byte() % 3; chunks > 0; --chunks) {
      const int index = input_.Byte() % 2;
      LayerModel& layer = session.layers[static_cast<size_t>(index)];
      const uint64_t overlap = input_.Byte() % 4 == 0 ? input_.UpTo(layer.token_count()) : 0;
      const uint64_t position = layer.token_count() - overlap;
      const ModelTokens tokens = Tokens(1 + input_.UpTo(kTokensMax - 1));
      const TokenChunk chunk = Chunk(index, position, layer.shape(), tokens);
      const absl::StatusOr<LayerState> stored = engine_.AppendChunk(**addition, chunk);
      if (!Succeeded(stored.status())) break;
      layer.Append(position, tokens);
      KVDEPOT_CHECK(stored->token_count == layer.token_count());
    }
    if (input_.Byte() % 4 != 0) KVDEPOT_CHECK(engine_.Finish(**addition).ok());
  }

  void Decode(ModelSession& session) {
    const int index = input_.Byte() % 2;
    LayerModel& layer = session.layers[static_cast<size_t>(index)];
    const uint64_t position = layer.token_count();
    const uint64_t count = 1 + input_.UpTo(20);
    const ModelTokens tokens = Tokens(count);
    const std::vector<float> q = RandomQueries(random_, layer.shape(), count);
    const auto results =
        engine_.Decode(index, {Step(session.info, index, position, layer.shape(), tokens, q)});
    if (!Succeeded(results.status())) return;
    layer.Append(position, tokens);
    KVDEPOT_CHECK((*results)[0].token_count == layer.token_count());
    if (!session.exact()) return;
    KVDEPOT_CHECK(LargestError((*results)[0].output, layer.Attend(q, position)) < 1e-3);
  }

  void Attend(ModelSession& session) {
    const int index = input_.Byte() % 2;
    const LayerModel& layer = session.layers[static_cast<size_t>(index)];
    const uint64_t committed = session.committed();
    const uint64_t token_count =
        input_.Byte() % 2 == 0 ? committed : input_.UpTo(layer.token_count());
    if (token_count == 0) return;
    const uint64_t queries = 1 + input_.UpTo(std::min<uint64_t>(token_count, 20) - 1);
    const std::vector<float> q = RandomQueries(random_, layer.shape(), queries);
    const auto results =
        engine_.Attend(index, {Query(session.info.id, layer.shape(), q, token_count)});
    if (layer.shape().sliding_window > 0 &&
        results.status().code() == absl::StatusCode::kOutOfRange) {
      // Of a window, only what readers stand at is promised.
      KVDEPOT_CHECK(token_count != committed || queries > 1);
      return;
    }
    KVDEPOT_CHECK(results.ok() && (*results)[0].token_count == token_count);
    if (!session.exact()) return;
    const std::vector<double> expected = layer.Attend(q, token_count - queries);
    KVDEPOT_CHECK(LargestError((*results)[0].output, expected) < 1e-3);
  }

  // Counts, and all tokens that are held: exactly where they are exact.
  void Compare(ModelSession& session) {
    const SessionInfo info = engine_.Get(session.info.id);
    KVDEPOT_CHECK(info.generation == session.info.generation);
    KVDEPOT_CHECK(info.committed_token_count == session.committed());
    uint64_t logical_bytes = 0;
    for (size_t i = 0; i < session.layers.size(); ++i) {
      const LayerModel& layer = session.layers[i];
      const uint64_t count = layer.token_count();
      KVDEPOT_CHECK(info.layers[i].token_count == count);
      if (count == 0) continue;
      const uint64_t first = FirstHeld(session, static_cast<int>(i));
      logical_bytes += (count - first) * 2 * layer.shape().row_values() * 4;
      const ModelTokens held = engine_.FetchAll(session.info.id, static_cast<int>(i), first);
      const ModelTokens expected = layer.Slice(first, count - first);
      KVDEPOT_CHECK(held.k.size() == expected.k.size());
      const uint64_t exact_from =
          session.exact() ? first : std::max(first, info.layers[i].sealed_end);
      const auto offset =
          static_cast<std::ptrdiff_t>((exact_from - first) * layer.shape().row_values());
      KVDEPOT_CHECK(std::equal(held.k.begin() + offset, held.k.end(), expected.k.begin() + offset));
      KVDEPOT_CHECK(std::equal(held.v.begin() + offset, held.v.end(), expected.v.begin() + offset));
    }
    KVDEPOT_CHECK(info.logical_bytes == logical_bytes);
  }

  // 0 without a window; otherwise found by asking.
  uint64_t FirstHeld(const ModelSession& session, int index) {
    const LayerModel& layer = session.layers[static_cast<size_t>(index)];
    if (layer.shape().sliding_window == 0) return 0;
    uint64_t first = 0;
    for (uint64_t end = layer.token_count() - 1; first < end;) {
      const uint64_t middle = (first + end) / 2;
      if (engine_.Fetch(session.info.id, index, middle, 1).ok()) {
        end = middle;
      } else {
        first = middle + 1;
      }
    }
    // What the newest query sees is held.
    const uint64_t window = static_cast<uint64_t>(layer.shape().sliding_window);
    KVDEPOT_CHECK(first == 0 || first + window <= layer.token_count());
    return first;
  }

  Input& input_;
  TestEngine engine_;
  std::map<size_t, ModelSession> sessions_;
  std::mt19937 random_{1};
  LayerModel pool_{kShape};
};

}  // namespace
}  // namespace kvdepot

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int kOperationsMax = 60;
  kvdepot::Input input(data, size);
  kvdepot::Operations operations(input);
  for (int i = 0; i < kOperationsMax && !input.empty(); ++i) operations.RunOne();
  operations.CompareAll();
  return 0;
}
