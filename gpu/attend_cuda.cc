#include "gpu/attend_cuda.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "gpu/attend_lists.h"
#include "gpu/attend_plan.h"
#include "gpu/check.h"
#include "gpu/cuda_status.h"

namespace kvdepot {
namespace {

constexpr size_t kAlignment = 256;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Of the item's sealed segments; raw ones are read by every launch.
Codec CodecOf(const AttendItem& item) {
  const bool has_packkv = std::any_of(item.runs.begin(), item.runs.end(), [](const TokenRun& run) {
    return run.form == TokenRun::Form::kPackKv;
  });
  return has_packkv ? Codec::kPackKv : Codec::kPlanes;
}

int RowsPerTile(const AttendItem& item) {
  return AttendRowsPerTile(item.shape, item.query_tokens, CodecOf(item));
}

// Tiles of query rows of one KV head.
uint32_t Tiles(const AttendItem& item) {
  const int rows = item.query_tokens * item.shape.queries_per_kv_head();
  const int rows_per_tile = RowsPerTile(item);
  return static_cast<uint32_t>((rows + rows_per_tile - 1) / rows_per_tile);
}

// Sessions that one launch can serve.
auto LaunchKey(const AttendItem& item) {
  return std::make_tuple(CodecOf(item), item.dtype, item.shape.kv_heads, item.shape.query_heads,
                         item.shape.head_dim, item.shape.soft_cap, item.shape.sliding_window,
                         RowsPerTile(item), Tiles(item));
}

// Pieces of a buffer that exists on the host and, at the same offsets, on the device. Without
// buffers it only counts.
class TwinMemory {
 public:
  TwinMemory(std::byte* host, std::byte* device) : host_(host), device_(device) {}

  template <class T>
  struct Piece {
    T* host;
    T* device;

    Piece From(size_t index) const {
      return host == nullptr ? *this : Piece{host + index, device + index};
    }
  };
  template <class T>
  Piece<T> Take(size_t count) {
    const size_t at = Aligned(end_);
    end_ = at + count * sizeof(T);
    if (host_ == nullptr) return {nullptr, nullptr};
    return {reinterpret_cast<T*>(host_ + at), reinterpret_cast<T*>(device_ + at)};
  }
  // Up to the end of the last piece.
  size_t used() const { return end_; }

 private:
  std::byte* const host_;
  std::byte* const device_;
  size_t end_ = 0;
};

size_t QueryValues(const AttendItem& item) {
  return static_cast<size_t>(item.query_tokens) * static_cast<size_t>(item.shape.query_heads) *
         static_cast<size_t>(item.shape.head_dim);
}
size_t QueryRowCount(const AttendItem& item) {
  return static_cast<size_t>(item.query_tokens) * static_cast<size_t>(item.shape.query_heads);
}

// What kernels read of an item's queries: a piece of `input` that they are to be copied to, or,
// with null for the host's side, where they lie on the device.
struct QueryPlace {
  std::byte* host;
  const std::byte* device;
};
QueryPlace TakeQueries(const AttendItem& item, TwinMemory& input) {
  if (item.q_space == MemorySpace::kDevice) return {nullptr, item.q};
  const auto q = input.Take<std::byte>(QueryValues(item) * DTypeBytes(item.dtype));
  return {q.host, q.device};
}

// Where the items' results go: into memory of the device that they name, or without gaps into
// `output`, as all of that is copied back: a row of outputs is a multiple of the alignment.
class ResultPlaces {
 public:
  using Piece = TwinMemory::Piece<float>;

  ResultPlaces(absl::Span<const AttendItem* const> items, TwinMemory& output) {
    size_t values = 0;
    size_t rows = 0;
    for (const AttendItem* item : items) {
      if (item->results_space == MemorySpace::kDevice) continue;
      values += QueryValues(*item);
      rows += QueryRowCount(*item);
    }
    values_ = output.Take<float>(values);
    log_sum_exp_ = output.Take<float>(rows);
  }

  // Output and log-sum-exp of the next item; null for the host's side where they stay on the
  // device.
  std::pair<Piece, Piece> Next(const AttendItem& item) {
    if (item.results_space == MemorySpace::kDevice) {
      return {Piece{nullptr, item.output}, Piece{nullptr, item.log_sum_exp}};
    }
    const std::pair<Piece, Piece> next = {values_, log_sum_exp_};
    values_ = values_.From(QueryValues(item));
    log_sum_exp_ = log_sum_exp_.From(QueryRowCount(item));
    return next;
  }

 private:
  // Of the next item.
  Piece values_{nullptr, nullptr};
  Piece log_sum_exp_{nullptr, nullptr};
};

// A launch's input and results in `input` and `results`; a first pass without buffers counts.
struct Directory {
  AttendLaunch batch;
  // Output and log-sum-exp on the host, by item; null where they go to the device's memory.
  std::vector<std::pair<float*, float*>> results;

  void Build(absl::Span<const AttendItem* const> items, TwinMemory& input, TwinMemory& output) {
    const size_t kv_heads = static_cast<size_t>(items[0]->shape.kv_heads);
    batch.shape = items[0]->shape;
    batch.dtype = items[0]->dtype;
    batch.codec = CodecOf(*items[0]);
    batch.rows_per_tile = RowsPerTile(*items[0]);
    batch.tiles = Tiles(*items[0]);
    batch.row_count = static_cast<uint32_t>(items.size() * kv_heads) * batch.tiles;
    batch.record_bytes_max = 0;
    const auto cells = input.Take<AttendCell>(items.size());
    const auto block_costs = input.Take<uint32_t>(items.size() * kv_heads);
    batch.cells = cells.device;
    batch.block_cost_bytes = block_costs.device;
    ResultPlaces places(items, output);
    std::map<const LayerCalibration*, TwinMemory::Piece<DeviceHead>> heads;
    results.clear();
    for (size_t i = 0; i < items.size(); ++i) {
      const AttendItem& item = *items[i];
      const ListSizes counts = ListSizesOf(item.runs);
      const auto coded = input.Take<CodedRun>(counts.coded);
      const auto exact = input.Take<ExactRun>(counts.exact);
      const auto q = TakeQueries(item, input);
      const auto [values, log_sum_exp] = places.Next(item);
      results.emplace_back(values.host, log_sum_exp.host);
      TwinMemory::Piece<DeviceHead> table{nullptr, nullptr};
      if (counts.coded > 0 && batch.codec == Codec::kPlanes) {
        const auto [known, fresh] = heads.try_emplace(item.calibration, table);
        if (fresh) {
          known->second = input.Take<DeviceHead>(kv_heads);
          if (known->second.host != nullptr)
            FillDeviceHeads(item.shape, *item.calibration, known->second.host);
        }
        table = known->second;
      }
      if (cells.host == nullptr) continue;

      AttendCell& cell = cells.host[i];
      cell = {};
      FillLists(item.shape, item.dtype, item.runs, item.first_position, coded.host, exact.host,
                &cell);
      cell.coded = coded.device;
      cell.exact = exact.device;
      cell.heads = table.device;
      cell.q = q.device;
      cell.output = values.device;
      cell.log_sum_exp = log_sum_exp.device;
      cell.query_position = static_cast<uint32_t>(item.query_position);
      cell.query_tokens = static_cast<uint32_t>(item.query_tokens);
      cell.scale = item.shape.soft_cap > 0 ? item.scale / item.shape.soft_cap : item.scale * kLog2E;
      if (q.host != nullptr) memcpy(q.host, item.q, QueryValues(item) * DTypeBytes(item.dtype));
      for (size_t h = 0; h < kv_heads; ++h) {
        block_costs.host[i * kv_heads + h] =
            batch.codec == Codec::kPackKv ? PackKvBlockCostBytes(item.shape.head_dim) : 0;
        if (table.host == nullptr) continue;
        block_costs.host[i * kv_heads + h] = BlockCostBytes(table.host[h]);
        batch.record_bytes_max = std::max(batch.record_bytes_max, table.host[h].record_bytes);
      }
    }
  }
};

template <class Buffer>
absl::Status Grow(Buffer& buffer, size_t size_bytes) {
  if (buffer.size_bytes() >= size_bytes) return absl::OkStatus();
  absl::StatusOr<Buffer> larger = Buffer::Allocate(std::max(size_bytes, 2 * buffer.size_bytes()));
  if (!larger.ok()) return larger.status();
  buffer = *std::move(larger);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CudaAttention> CudaAttention::Create(cudaStream_t stream) {
  int device = 0;
  int multiprocessors = 0;
  absl::Status status = CudaStatus(cudaGetDevice(&device), "asking for the device");
  if (status.ok())
    status =
        CudaStatus(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                   "asking for the multiprocessors");
  if (!status.ok()) return status;
  absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Allocate(AttendWorkspaceBytes());
  if (!workspace.ok()) return workspace.status();
  status = CudaStatus(cudaMemsetAsync(workspace->data(), 0, workspace->size_bytes(), stream),
                      "clearing the workspace of attend");
  if (!status.ok()) return status;
  return CudaAttention(stream, multiprocessors, *std::move(workspace));
}

absl::Status CudaAttention::Attend(absl::Span<const AttendItem> items) {
  std::map<decltype(LaunchKey(items[0])), std::vector<const AttendItem*>> launches;
  for (const AttendItem& item : items) launches[LaunchKey(item)].push_back(&item);
  for (const auto& launch : launches) {
    absl::Status status = Launch(launch.second);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaAttention::Launch(absl::Span<const AttendItem* const> items) {
  Directory directory;
  TwinMemory input_size(nullptr, nullptr);
  TwinMemory result_size(nullptr, nullptr);
  directory.Build(items, input_size, result_size);
  absl::Status status = Grow(host_input_, input_size.used());
  if (status.ok()) status = Grow(device_input_, input_size.used());
  if (status.ok()) status = Grow(host_results_, result_size.used());
  if (status.ok()) status = Grow(device_results_, result_size.used());
  if (!status.ok()) return status;

  TwinMemory input(host_input_.data(), device_input_.data());
  TwinMemory results(host_results_.data(), device_results_.data());
  directory.Build(items, input, results);
  status = CudaStatus(cudaMemcpyAsync(device_input_.data(), host_input_.data(), input.used(),
                                      cudaMemcpyHostToDevice, stream_),
                      "sending queries");
  if (!status.ok()) return status;

  AttendLaunch batch = directory.batch;
  batch.workspace = workspace_.data();
  for (uint32_t row = 0; row < directory.batch.row_count; row += kLaunchRowsMax) {
    batch.first_row = row;
    batch.row_count = std::min(kLaunchRowsMax, directory.batch.row_count - row);
    status = CudaStatus(LaunchAttend(batch, multiprocessors_, stream_), "attend");
    if (!status.ok()) return status;
  }
  if (results.used() > 0) {
    status = CudaStatus(cudaMemcpyAsync(host_results_.data(), device_results_.data(),
                                        results.used(), cudaMemcpyDeviceToHost, stream_),
                        "fetching outputs");
  }
  if (status.ok()) status = CudaStatus(cudaStreamSynchronize(stream_), "attend");
  if (!status.ok()) return status;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i]->results_space == MemorySpace::kDevice) continue;
    memcpy(items[i]->output, directory.results[i].first, QueryValues(*items[i]) * sizeof(float));
    memcpy(items[i]->log_sum_exp, directory.results[i].second,
           QueryRowCount(*items[i]) * sizeof(float));
  }
  return absl::OkStatus();
}

}  // namespace kvdepot
