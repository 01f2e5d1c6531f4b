#include "client/cuda_mapped_stream.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/after_stream.h"
#include "client/session_cells.h"
#include "client/staging_pool.h"
#include "gpu/attend_launch.h"
#include "gpu/cuda_device.h"
#include "gpu/cuda_status.h"
#include "gpu/device_memory.h"
#include "gpu/mapped_layer_cuda.h"

namespace kvdepot {
namespace {

constexpr absl::Duration kCommitTimeout = absl::Seconds(10);
constexpr size_t kCommitsMax = 64;
constexpr size_t kArrayAlignment = 16;

// While it lives, calls that a capture forbids may be made beside it.
class BesideCaptures {
 public:
  BesideCaptures() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

absl::Status CheckArray(const void* array, const char* name) {
  if (array != nullptr && reinterpret_cast<uintptr_t>(array) % kArrayAlignment == 0)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ",
                                                 absl::Hex(reinterpret_cast<uintptr_t>(array)),
                                                 ", must be an address of whole 16 bytes"));
}

absl::Status ToStatus(const MappedFlag& flag) {
  switch (flag.refusal) {
    case Refusal::kNone:
      return absl::OkStatus();
    case Refusal::kNoRoom:
      return absl::ResourceExhaustedError(absl::StrCat("room: ", flag.room, " tokens in layer ",
                                                       flag.layer, ", ", flag.tokens,
                                                       " more do not fit"));
    case Refusal::kNotFinite:
      return absl::InvalidArgumentError(
          absl::StrCat(flag.in_v != 0 ? "v" : "k", ": value ", flag.value, " of ", flag.tokens,
                       " tokens for layer ", flag.layer, ", must be finite"));
  }
  return absl::InternalError("flag: of unknown kind");
}

// Of a session's attend launches: what it may have beside exact tokens, as which raw ones are read.
Codec LaunchCodec(const MappedShape& shape) {
  return shape.codec == Codec::kPackKv ? Codec::kPackKv : Codec::kPlanes;
}

// Sessions that one attend launch can serve.
auto LaunchKey(const LayerShape& shape, DType dtype, Codec codec, int query_tokens) {
  return std::make_tuple(dtype, codec, shape.kv_heads, shape.query_heads, shape.head_dim,
                         shape.soft_cap, shape.sliding_window, query_tokens);
}

}  // namespace

class CudaMappedStream::OnDevice final : public CudaMappedStream, private MappedSession::User {
 public:
  OnDevice(CUstream_st* stream, CudaDevice device, int multiprocessors, Stream beside,
           DeviceBuffer workspace, DeviceBuffer append_scratch)
      : stream_(stream),
        device_(std::move(device)),
        multiprocessors_(multiprocessors),
        beside_(std::move(beside)),
        workspace_(std::move(workspace)),
        append_scratch_(std::move(append_scratch)),
        after_(device_.index) {}

  ~OnDevice() override {
    (void)cudaStreamSynchronize(stream_);
    after_.Wait(absl::InfiniteFuture()).IgnoreError();
    for (const auto& [session, attached] : sessions_) {
      const std::lock_guard<std::mutex> lock(session->mutex_);
      session->users_.erase(this);
      if (session->appender_ == this) session->appender_ = nullptr;
    }
  }

  absl::Status AppendAttend(size_t layer, float scale, absl::Span<const Query> queries) override {
    return Run(layer, scale, queries, /*appends=*/true);
  }
  absl::Status Attend(size_t layer, float scale, absl::Span<const Query> queries) override {
    return Run(layer, scale, queries, /*appends=*/false);
  }

  absl::Status Append(MappedSession* session, size_t layer, const std::byte* k, const std::byte* v,
                      int count) override {
    const BesideCaptures beside;
    absl::Status status = CheckAppends(session);
    if (status.ok()) status = session->CheckLayer(layer);
    if (status.ok()) status = CheckArray(k, "k");
    if (status.ok()) status = CheckArray(v, "v");
    if (status.ok() && count < 1) {
      status = absl::InvalidArgumentError(absl::StrCat("count: ", count, ", must be at least 1"));
    }
    if (!status.ok()) return status;
    MappedQuery query;
    query.k = k;
    query.v = v;
    return Write(*sessions_[session].cells, session->shape(), layer, query, count);
  }

  absl::Status Commit(MappedSession* session, uint32_t room_tokens) override {
    absl::Status status = CheckAppends(session);
    if (status.ok()) status = session->error();
    if (!status.ok()) return status;
    if (after_.pending() >= kCommitsMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("commits: ", kCommitsMax, " of ", kCommitsMax, " are under way"));
    }
    const SessionCells& cells = *sessions_[session].cells;
    auto read = staging_.Take(sizeof(MappedFlag) + cells.layer_count() * sizeof(uint64_t));
    if (!read.ok()) return read.status();
    auto* const flag = reinterpret_cast<MappedFlag*>((*read)->data());
    auto* const counts = reinterpret_cast<uint64_t*>((*read)->data() + sizeof(MappedFlag));
    status = CudaStatus(
        ReadState(cells.layers(), cells.layer_count(), cells.flag(), flag, counts, stream_),
        "reading a session's state");
    if (!status.ok()) return status;
    return after_.Run(stream_, [this, session, room_tokens, held = *read, flag, counts,
                                layers = cells.layer_count()](absl::Status done) {
      if (done.ok()) session->TakeWritten({counts, layers});
      if (done.ok()) done = ToStatus(*flag);
      if (!done.ok()) session->RaiseError(done);
      if (done.ok()) done = session->CommitWritten(absl::Now() + kCommitTimeout, room_tokens);
      if (done.ok()) return;
      const std::lock_guard<std::mutex> lock(errors_mutex_);
      errors_.try_emplace(session, done);
    });
  }

  absl::Status Wait(MappedSession* session, absl::Time deadline) override {
    absl::Status status = after_.Wait(deadline);
    if (!status.ok()) return status;
    const std::lock_guard<std::mutex> lock(errors_mutex_);
    const auto found = errors_.find(session);
    if (found == errors_.end()) return absl::OkStatus();
    status = found->second;
    errors_.erase(found);
    return status;
  }

  absl::Status Refresh(MappedSession* session) override {
    const BesideCaptures beside;
    absl::Status status = CheckNotCapturing("session", session->id());
    if (status.ok()) status = Attach(session);
    return status.ok() ? TakeNewest(session) : status;
  }

  absl::Status Truncate(MappedSession* session, uint64_t token_count,
                        absl::Time deadline) override {
    absl::Status status = CheckNotCapturing("token_count", absl::StrCat(token_count));
    if (status.ok()) status = CheckAppends(session);
    if (status.ok()) status = after_.Wait(deadline);
    if (!status.ok()) return status;
    if (session->DropUnsent(token_count)) {
      const SessionCells& cells = *sessions_[session].cells;
      return CudaStatus(DropTokens(cells.layers(), cells.layer_count(),
                                   static_cast<uint32_t>(token_count), stream_),
                        "dropping tokens");
    }
    status = session->TruncateWritten(token_count, deadline);
    return status.ok() ? TakeNewest(session) : status;
  }

  absl::Status ClearError(MappedSession* session) override {
    absl::Status status = Attach(session);
    if (!status.ok()) return status;
    session->ClearError();
    return CudaStatus(
        cudaMemsetAsync(sessions_[session].cells->flag(), 0, sizeof(MappedFlag), stream_),
        "clearing a session's flag");
  }

 private:
  using DirectoryRef = MappedSession::DirectoryRef;

  struct Attached {
    std::unique_ptr<SessionCells> cells;
    DirectoryRef directory;
  };

  // Attends of readers in graphs, whose cells are made anew with each directory.
  struct Kept {
    std::vector<MappedSession*> sessions;
    std::vector<MappedBatch> batches;
    DeviceBuffer cells;
  };

  void Release(MappedSession* session) override {
    const BesideCaptures beside;
    (void)cudaStreamSynchronize(stream_);
    after_.Wait(absl::InfiniteFuture()).IgnoreError();
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(),
                               [session](const Kept& kept) {
                                 return std::find(kept.sessions.begin(), kept.sessions.end(),
                                                  session) != kept.sessions.end();
                               }),
                kept_.end());
    sessions_.erase(session);
    const std::lock_guard<std::mutex> lock(errors_mutex_);
    errors_.erase(session);
  }

  absl::StatusOr<bool> IsCapturing() const {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    const absl::Status status =
        CudaStatus(cudaStreamIsCapturing(stream_, &capture), "asking for a capture");
    if (!status.ok()) return status;
    return capture != cudaStreamCaptureStatusNone;
  }
  absl::Status CheckNotCapturing(const char* field, const std::string& value) const {
    const absl::StatusOr<bool> capturing = IsCapturing();
    if (!capturing.ok()) return capturing.status();
    if (!*capturing) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(field, ": ", value, ", cannot be taken while the stream is being captured"));
  }

  // Makes the session one of this stream's.
  absl::Status Attach(MappedSession* session) {
    if (sessions_.count(session) > 0) return absl::OkStatus();
    if (session->device() != device_.uuid) {
      return absl::FailedPreconditionError(
          absl::StrCat("session: ", session->id(), ", lies in ",
                       session->device().empty() ? "host memory" : session->device(),
                       ", the stream's is ", device_.uuid));
    }
    absl::Status status = CheckNotCapturing("session", session->id());
    if (!status.ok()) return status;
    absl::StatusOr<std::unique_ptr<SessionCells>> cells =
        SessionCells::Create(session->shape(), stream_);
    if (!cells.ok()) return cells.status();
    sessions_[session].cells = *std::move(cells);
    {
      const std::lock_guard<std::mutex> lock(session->mutex_);
      session->users_.insert(this);
    }
    return TakeNewest(session);
  }

  absl::Status CheckAppends(MappedSession* session) {
    absl::Status status = session->CheckWriter();
    if (status.ok()) status = Attach(session);
    if (!status.ok()) return status;
    const std::lock_guard<std::mutex> lock(session->mutex_);
    if (session->appender_ == nullptr) session->appender_ = this;
    if (session->appender_ == this) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("session: ", session->id(), ", is appended to on another stream"));
  }

  absl::Status TakeNewest(MappedSession* session) {
    Attached& attached = sessions_[session];
    DirectoryRef newest = session->directory();
    if (attached.directory == newest) return absl::OkStatus();
    const bool goes_on =
        attached.directory != nullptr && attached.directory->generation == newest->generation;
    absl::StatusOr<std::shared_ptr<PinnedBuffer>> staged =
        attached.cells->Take(*newest, goes_on, &staging_, stream_);
    if (!staged.ok()) return staged.status();
    for (const Kept& kept : kept_) {
      if (std::find(kept.sessions.begin(), kept.sessions.end(), session) == kept.sessions.end())
        continue;
      for (const MappedBatch& batch : kept.batches) {
        absl::Status status = CudaStatus(PrepareAttend(batch, stream_), "making cells");
        if (!status.ok()) return status;
      }
    }
    // The last directory is retired when nothing that was queued before can read by it.
    DirectoryRef last = std::exchange(attached.directory, std::move(newest));
    return after_.Run(stream_, [last = std::move(last), held = *staged](const absl::Status&) {});
  }

  absl::Status Check(size_t layer, absl::Span<const Query> queries, bool appends) {
    std::vector<const MappedSession*> seen;
    for (size_t i = 0; i < queries.size(); ++i) {
      const Query& query = queries[i];
      absl::Status status = query.session->CheckLayer(layer);
      if (status.ok()) status = appends ? CheckAppends(query.session) : Attach(query.session);
      if (status.ok() && appends &&
          std::find(seen.begin(), seen.end(), query.session) != seen.end()) {
        status = absl::InvalidArgumentError(
            absl::StrCat("session: ", query.session->id(), ", stands in these queries twice"));
      }
      if (status.ok() && query.query_tokens < 1) {
        status = absl::InvalidArgumentError(
            absl::StrCat("query_tokens: ", query.query_tokens, ", must be at least 1"));
      }
      if (status.ok() && appends) status = CheckArray(query.k, "k");
      if (status.ok() && appends) status = CheckArray(query.v, "v");
      if (status.ok()) status = CheckArray(query.q, "q");
      if (status.ok()) status = CheckArray(query.output, "output");
      if (status.ok() && query.log_sum_exp == nullptr)
        status = absl::InvalidArgumentError("log_sum_exp: null, must be set");
      if (!status.ok()) {
        return absl::Status(status.code(), absl::StrCat("queries[", i, "].", status.message()));
      }
      seen.push_back(query.session);
    }
    return absl::OkStatus();
  }

  absl::Status Run(size_t layer, float scale, absl::Span<const Query> queries, bool appends) {
    const BesideCaptures beside;
    absl::Status status = Check(layer, queries, appends);
    if (!status.ok()) return status;
    const absl::StatusOr<bool> capturing = IsCapturing();
    if (!capturing.ok()) return capturing.status();
    std::map<decltype(LaunchKey(LayerShape(), DType::kBf16, Codec::kRaw, 0)), std::vector<Query>>
        launches;
    for (const Query& query : queries) {
      const MappedShape& shape = query.session->shape();
      launches[LaunchKey(shape.layers[layer], shape.dtype, LaunchCodec(shape), query.query_tokens)]
          .push_back(query);
    }
    for (const auto& launch : launches) {
      status = Launch(layer, scale, launch.second, appends, *capturing);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Queries of one LaunchKey.
  absl::Status Launch(size_t layer, float scale, const std::vector<Query>& queries, bool appends,
                      bool capturing) {
    const MappedShape& session_shape = queries[0].session->shape();
    const LayerShape& shape = session_shape.layers[layer];
    const size_t kv_heads = static_cast<size_t>(shape.kv_heads);
    const size_t cells_bytes = queries.size() * sizeof(AttendCell);
    const size_t bytes = cells_bytes + queries.size() * kv_heads * sizeof(uint32_t);
    // What only readers attend to changes with directories alone: their cells are kept.
    const bool keeps = capturing && !appends &&
                       std::all_of(queries.begin(), queries.end(), [](const Query& query) {
                         return query.session->options_.access == MapAccess::kRead;
                       });
    absl::StatusOr<std::byte*> memory = keeps ? Keep(queries, bytes) : Scratch(bytes);
    if (!memory.ok()) return memory.status();

    MappedBatch batch;
    batch.layer_index = static_cast<uint32_t>(layer);
    batch.query_tokens = static_cast<uint32_t>(queries[0].query_tokens);
    batch.kv_heads = static_cast<uint32_t>(shape.kv_heads);
    batch.query_heads = static_cast<uint32_t>(shape.query_heads);
    batch.head_dim = static_cast<uint32_t>(shape.head_dim);
    batch.dtype = session_shape.dtype;
    const float factor = scale != 0 ? scale : 1 / std::sqrt(static_cast<float>(shape.head_dim));
    batch.scale = shape.soft_cap > 0 ? factor / shape.soft_cap : factor * kLog2E;
    const bool fused = appends && queries[0].query_tokens <= kFusedTokensMax;
    batch.tokens = fused ? batch.query_tokens : 0;

    AttendLaunch attend;
    attend.shape = shape;
    attend.dtype = session_shape.dtype;
    attend.codec = LaunchCodec(session_shape);
    attend.rows_per_tile = AttendRowsPerTile(shape, queries[0].query_tokens, attend.codec);
    const int rows = queries[0].query_tokens * shape.queries_per_kv_head();
    attend.tiles = static_cast<uint32_t>((rows + attend.rows_per_tile - 1) / attend.rows_per_tile);
    attend.cells = reinterpret_cast<const AttendCell*>(*memory);
    attend.block_cost_bytes = reinterpret_cast<const uint32_t*>(*memory + cells_bytes);
    attend.workspace = workspace_.data();
    for (size_t first = 0; first < queries.size(); first += kMappedQueriesMax) {
      const size_t count = std::min<size_t>(kMappedQueriesMax, queries.size() - first);
      batch.query_count = static_cast<uint32_t>(count);
      batch.cells = reinterpret_cast<AttendCell*>(*memory) + first;
      batch.block_cost_bytes =
          reinterpret_cast<uint32_t*>(*memory + cells_bytes) + first * kv_heads;
      for (size_t i = 0; i < count; ++i) {
        const Query& query = queries[first + i];
        SessionCells& cells = *sessions_[query.session].cells;
        MappedQuery& to = batch.queries[i];
        to = {cells.layers() + layer, cells.flag(),     query.k, query.v, query.q,
              query.output,           query.log_sum_exp};
        attend.record_bytes_max = std::max(attend.record_bytes_max, cells.record_bytes_max(layer));
        if (!appends || fused) continue;
        absl::Status status =
            Write(cells, session_shape, layer, to, static_cast<int>(query.query_tokens));
        if (!status.ok()) return status;
      }
      if (keeps) kept_.back().batches.push_back(batch);
      absl::Status status =
          keeps ? PrepareBeside(batch) : CudaStatus(PrepareAttend(batch, stream_), "making cells");
      if (!status.ok()) return status;
    }
    const uint32_t row_count = static_cast<uint32_t>(queries.size() * kv_heads) * attend.tiles;
    for (uint32_t row = 0; row < row_count; row += kLaunchRowsMax) {
      attend.first_row = row;
      attend.follows_cells = row == 0 && !keeps;
      attend.row_count = std::min(kLaunchRowsMax, row_count - row);
      absl::Status status = CudaStatus(LaunchAttend(attend, multiprocessors_, stream_), "attend");
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Write(const SessionCells& cells, const MappedShape& shape, size_t layer,
                     MappedQuery query, int count) {
    query.layer = cells.layers() + layer;
    query.flag = cells.flag();
    MappedBatch batch;
    batch.layer_index = static_cast<uint32_t>(layer);
    batch.kv_heads = static_cast<uint32_t>(shape.layers[layer].kv_heads);
    batch.head_dim = static_cast<uint32_t>(shape.layers[layer].head_dim);
    batch.dtype = shape.dtype;
    return CudaStatus(
        AppendTokens(batch, query, static_cast<uint32_t>(count),
                     reinterpret_cast<AppendScratch*>(append_scratch_.data()), stream_),
        "appending tokens");
  }

  // Serves one launch after the other. What graphs hold stays.
  absl::StatusOr<std::byte*> Scratch(size_t bytes) {
    if (scratch_.empty() || scratch_.back().size_bytes() < bytes) {
      const size_t last = scratch_.empty() ? size_t{16} << 10 : scratch_.back().size_bytes();
      absl::StatusOr<DeviceBuffer> larger = DeviceBuffer::Allocate(std::max(2 * last, bytes));
      if (!larger.ok()) return larger.status();
      scratch_.push_back(*std::move(larger));
    }
    return scratch_.back().data();
  }

  absl::StatusOr<std::byte*> Keep(const std::vector<Query>& queries, size_t bytes) {
    absl::StatusOr<DeviceBuffer> cells = DeviceBuffer::Allocate(bytes);
    if (!cells.ok()) return cells.status();
    Kept kept;
    for (const Query& query : queries) kept.sessions.push_back(query.session);
    kept.cells = *std::move(cells);
    kept_.push_back(std::move(kept));
    return kept_.back().cells.data();
  }

  // Makes cells outside of the capture, from what the stream will have done by its replay.
  absl::Status PrepareBeside(const MappedBatch& batch) {
    absl::Status status = after_.Wait(absl::InfiniteFuture());
    if (status.ok()) status = CudaStatus(PrepareAttend(batch, beside_.get()), "making cells");
    if (status.ok()) status = beside_.Synchronize();
    return status;
  }

  const cudaStream_t stream_;
  const CudaDevice device_;
  const int multiprocessors_;
  const Stream beside_;
  const DeviceBuffer workspace_;
  const DeviceBuffer append_scratch_;
  StagingPool staging_;
  std::vector<DeviceBuffer> scratch_;
  std::vector<Kept> kept_;
  std::map<MappedSession*, Attached> sessions_;
  std::mutex errors_mutex_;
  std::map<MappedSession*, absl::Status> errors_;  // guarded by errors_mutex_
  // Ends first: its functions use all of the above.
  AfterStream after_;
};

absl::StatusOr<std::unique_ptr<CudaMappedStream>> CudaMappedStream::Create(CUstream_st* stream) {
  int index = 0;
  absl::Status status = CudaStatus(cudaGetDevice(&index), "asking for the device");
  if (!status.ok()) return absl::FailedPreconditionError(status.message());
  absl::StatusOr<CudaDevice> device = OpenCudaDevice(absl::StrCat("cuda:", index));
  if (!device.ok()) return device.status();
  int multiprocessors = 0;
  status =
      CudaStatus(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index),
                 "asking for the multiprocessors");
  if (!status.ok()) return status;
  absl::StatusOr<Stream> beside = Stream::Create();
  if (!beside.ok()) return beside.status();
  absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Allocate(AttendWorkspaceBytes());
  if (!workspace.ok()) return workspace.status();
  absl::StatusOr<DeviceBuffer> append_scratch = DeviceBuffer::Allocate(sizeof(AppendScratch));
  if (!append_scratch.ok()) return append_scratch.status();
  for (const DeviceBuffer* buffer : {&*workspace, &*append_scratch}) {
    status = CudaStatus(cudaMemsetAsync(buffer->data(), 0, buffer->size_bytes(), stream),
                        "clearing the stream's workspace");
    if (!status.ok()) return status;
  }
  return std::make_unique<OnDevice>(stream, *std::move(device), multiprocessors, *std::move(beside),
                                    *std::move(workspace), *std::move(append_scratch));
}

}  // namespace kvdepot
