#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "client/cuda_mapped_stream.h"
#include "gpu/check.h"
#include "tests/integration/device_token.h"
#include "tests/integration/mapped_arm.h"

namespace kvdepot {
namespace {

constexpr size_t kStreams = 2;

void Check(cudaError_t error) { KVDEPOT_CHECK(error == cudaSuccess); }

// Of one layer of one session on one stream: appends and attends, or attends.
class LayerGraph {
 public:
  LayerGraph(cudaStream_t stream, CudaMappedStream* mapped, MappedSession* session, size_t layer,
             bool appends)
      : stream_(stream) {
    graph_ = Capture([&] {
      const CudaMappedStream::Query query = token_.Of(session);
      return appends ? mapped->AppendAttend(layer, 0, {query}) : mapped->Attend(layer, 0, {query});
    });
  }
  ~LayerGraph() { cudaGraphExecDestroy(graph_); }
  LayerGraph(const LayerGraph&) = delete;
  LayerGraph& operator=(const LayerGraph&) = delete;

  // `token` is null where nothing is appended.
  absl::Status Replay(const MappedTokens* token, MappedQuery* query) {
    if (!captured_.ok()) return captured_;
    if (token != nullptr) token_.SetTokens(*token);
    token_.SetQuery(*query);
    Check(cudaGraphLaunch(graph_, stream_));
    Check(cudaStreamSynchronize(stream_));
    token_.Get(query);
    return absl::OkStatus();
  }

 private:
  template <typename Calls>
  cudaGraphExec_t Capture(const Calls& calls) {
    Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    captured_ = calls();
    cudaGraph_t graph = nullptr;
    Check(cudaStreamEndCapture(stream_, &graph));
    cudaGraphExec_t exec = nullptr;
    Check(cudaGraphInstantiate(&exec, graph, 0));
    Check(cudaGraphDestroy(graph));
    return exec;
  }

  const cudaStream_t stream_;
  DeviceToken token_;
  absl::Status captured_;
  cudaGraphExec_t graph_ = nullptr;
};

class CudaArm final : public MappedArm {
 public:
  CudaArm() {
    for (auto& [stream, mapped] : streams_) {
      Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      auto made = CudaMappedStream::Create(stream);
      KVDEPOT_CHECK(made.ok());
      mapped = *std::move(made);
    }
  }
  ~CudaArm() override {
    graphs_.clear();
    for (auto& [stream, mapped] : streams_) {
      mapped = nullptr;
      cudaStreamDestroy(stream);
    }
  }

  void Forget(MappedSession* session) override {
    for (auto it = graphs_.begin(); it != graphs_.end();) {
      it = it->first.session == session ? graphs_.erase(it) : std::next(it);
    }
  }
  absl::Status Append(MappedSession* session, int layer, const MappedTokens& token,
                      MappedQuery* query) override {
    MappedQuery unused(0);
    return Run(session, layer, 0, &token, query == nullptr ? &unused : query);
  }
  absl::Status Attend(MappedSession* session, int layer, MappedQuery* query) override {
    turn_ = (turn_ + 1) % kStreams;
    return Run(session, layer, turn_, nullptr, query);
  }
  absl::Status Commit(MappedSession* session, absl::Time deadline) override {
    CudaMappedStream* const stream = streams_[0].second.get();
    absl::Status status = stream->Commit(session, 0);
    if (status.ok()) status = stream->Wait(session, deadline);
    return status.ok() ? RefreshStreams(session) : status;
  }
  absl::Status Refresh(MappedSession* session, absl::Time deadline) override {
    absl::Status status = session->Refresh(deadline);
    return status.ok() ? RefreshStreams(session) : status;
  }

 private:
  struct Key {
    MappedSession* session;
    int layer;
    size_t stream;
    bool appends;
    bool operator<(const Key& other) const {
      return std::make_tuple(session, layer, stream, appends) <
             std::make_tuple(other.session, other.layer, other.stream, other.appends);
    }
  };

  absl::Status Run(MappedSession* session, int layer, size_t turn, const MappedTokens* token,
                   MappedQuery* query) {
    auto& [stream, mapped] = streams_[turn];
    std::unique_ptr<LayerGraph>& graphs = graphs_[{session, layer, turn, token != nullptr}];
    if (graphs == nullptr) {
      absl::Status status = mapped->Refresh(session);
      if (!status.ok()) return status;
      graphs = std::make_unique<LayerGraph>(stream, mapped.get(), session,
                                            static_cast<size_t>(layer), token != nullptr);
    }
    return graphs->Replay(token, query);
  }

  absl::Status RefreshStreams(MappedSession* session) {
    absl::Status status;
    for (auto& [stream, mapped] : streams_) status.Update(mapped->Refresh(session));
    return status;
  }

  std::array<std::pair<cudaStream_t, std::unique_ptr<CudaMappedStream>>, kStreams> streams_;
  std::map<Key, std::unique_ptr<LayerGraph>> graphs_;
  size_t turn_ = 0;
};

}  // namespace

std::unique_ptr<MappedArm> MakeCudaArm() { return std::make_unique<CudaArm>(); }

}  // namespace kvdepot
