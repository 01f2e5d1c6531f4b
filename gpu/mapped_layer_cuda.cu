#include <algorithm>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/mapped_layer_cuda.h"
#include "gpu/raw/finite_cuda.h"

namespace kvdepot {
namespace {

constexpr int kThreads = 256;
// AppendScratch::written of what was refused.
constexpr uint32_t kNothing = 0xFFFFFFFFu;
constexpr unsigned kAppendBlocksMax = 1056;  // eight a multiprocessor

// Of the tokens of one call: client order is [K, V][token][kv_head][word of 16 bytes].
struct TokenWords {
  uint32_t row_words;
  uint32_t kv_heads;
  uint32_t tokens;

  __host__ __device__ uint32_t tensor() const { return row_words * kv_heads * tokens; }
};

TokenWords WordsOf(const MappedBatch& batch, uint32_t tokens) {
  return {static_cast<uint32_t>(batch.head_dim * DTypeBytes(batch.dtype) / 16), batch.kv_heads,
          tokens};
}

__device__ uint32_t ExponentMask(DType dtype) {
  return dtype == DType::kFp32 ? 0x7F800000u : dtype == DType::kBf16 ? 0x7F807F80u : 0x7C007C00u;
}

// Index of the first value in `word` that is not finite, or as many as it has.
__device__ uint32_t FirstNotFinite(const uint4& word, DType dtype) {
  const uint32_t mask = ExponentMask(dtype);
  const uint32_t parts[4] = {word.x, word.y, word.z, word.w};
  const bool wide = dtype == DType::kFp32;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t bits = parts[i] & mask;
    if (wide) {
      if (bits == mask) return i;
    } else {
      if ((bits & 0xFFFFu) == (mask & 0xFFFFu)) return 2 * i;
      if ((bits >> 16) == (mask >> 16)) return 2 * i + 1;
    }
  }
  return wide ? 4 : 8;
}

// Where word `index` of a token's K or V goes.
__device__ uint4* SlotWord(const MappedLayer& layer, uint32_t written, const TokenWords& words,
                           uint32_t tensor, uint32_t index) {
  const uint32_t word = index % words.row_words;
  const uint32_t rest = index / words.row_words;
  const uint32_t head = rest % words.kv_heads;
  const uint32_t behind = written + rest / words.kv_heads;
  const ExactRun& run = layer.exact[layer.first_open + layer.OpenRun(behind)];
  const uint32_t slot = run.first + layer.SlotsBefore(behind) + tensor * run.capacity;
  std::byte* const rows = const_cast<std::byte*>(run.rows) + head * run.head_stride_bytes;
  return reinterpret_cast<uint4*>(rows) + static_cast<size_t>(slot) * words.row_words + word;
}

// After `count` tokens are written in place of `before`: the counts of the runs that they touch.
// All threads of the block.
__device__ void SetRunTokens(const MappedLayer& layer, uint32_t before, uint32_t count) {
  const uint32_t least = before < count ? before : count;
  const uint32_t most = before < count ? count : before;
  if (least == most) return;
  const uint32_t end = layer.OpenRun(most - 1) + 1;
  for (uint32_t run = layer.OpenRun(least) + threadIdx.x; run < end; run += blockDim.x)
    layer.exact[layer.first_open + run].count = static_cast<uint16_t>(layer.TokensIn(run, count));
}

__device__ MappedFlag RefusalOf(const MappedLayer& layer, uint32_t layer_index, uint32_t tokens,
                                bool in_v, uint64_t value, bool is_finite) {
  MappedFlag flag;
  flag.layer = layer_index;
  flag.tokens = tokens;
  flag.room = layer.room - layer.written;
  if (!is_finite) {
    flag.refusal = Refusal::kNotFinite;
    flag.in_v = in_v ? 1 : 0;
    flag.value = value;
  } else if (tokens > flag.room) {
    flag.refusal = Refusal::kNoRoom;
  }
  return flag;
}

// The exact runs of a cell when `written` tokens are behind the directory's. Counts of open runs
// are computed: others may be writing them.
__device__ void ListExact(const MappedLayer& layer, uint32_t written, AttendCell* cell) {
  cell->exact_runs = layer.ExactRuns(written);
  if (cell->exact_runs == 0) return;
  const uint32_t last = cell->exact_runs - 1;
  const uint32_t count = last >= layer.first_open ? layer.TokensIn(last - layer.first_open, written)
                                                  : layer.exact[last].count;
  cell->exact_units =
      layer.exact[last].unit_begin + (count + kExactChunkTokens - 1) / kExactChunkTokens;
}

// A block a query. A chain of three loads from device memory: the layer, the run that is written to
// and the tokens beside that.
__global__ void __launch_bounds__(kThreads)
    PrepareKernel(const __grid_constant__ MappedBatch batch, TokenWords words) {
  __shared__ unsigned long long first_not_finite;  // among K, then V
  // The attend launch behind this may begin; it waits for this one's end (AttendLaunch).
  cudaTriggerProgrammaticLaunchCompletion();
  const MappedQuery& query = batch.queries[blockIdx.x];
  const bool was_refused = query.flag->refusal != Refusal::kNone;
  const MappedLayer layer = *query.layer;
  const uint4* const k = reinterpret_cast<const uint4*>(query.k);
  const uint4* const v = reinterpret_cast<const uint4*>(query.v);
  const uint32_t tensor_words = words.tensor();
  const uint32_t values = batch.dtype == DType::kFp32 ? 4 : 8;
  const bool fits = words.tokens <= layer.room - layer.written;
  bool is_finite = true;
  for (uint32_t i = threadIdx.x; i < 2 * tensor_words; i += kThreads) {
    const uint4 word = i < tensor_words ? k[i] : v[i - tensor_words];
    is_finite = is_finite && FirstNotFinite(word, batch.dtype) == values;
  }
  if (threadIdx.x == 0) first_not_finite = ~0ull;
  const bool all_finite = __syncthreads_and(is_finite ? 1 : 0) != 0;
  const bool accepted = !was_refused && fits && all_finite;
  const bool raises = !was_refused && words.tokens > 0 && !accepted;
  if (raises && !is_finite) {
    for (uint32_t i = threadIdx.x; i < 2 * tensor_words; i += kThreads) {
      const uint4 word = i < tensor_words ? k[i] : v[i - tensor_words];
      const uint32_t at = FirstNotFinite(word, batch.dtype);
      if (at < values)
        atomicMin(&first_not_finite, static_cast<unsigned long long>(i) * values + at);
    }
  }
  const bool refused = was_refused || raises;
  const uint32_t written = layer.written + (accepted ? words.tokens : 0);
  if (threadIdx.x == kThreads - 1) {
    AttendCell cell = {};
    cell.coded = layer.coded;
    cell.exact = layer.exact;
    cell.q = query.q;
    cell.output = query.output;
    cell.log_sum_exp = query.log_sum_exp;
    cell.scale = batch.scale;
    if (!refused) {
      cell.heads = layer.coded_runs > 0 ? layer.heads : nullptr;
      cell.coded_runs = layer.coded_runs;
      cell.coded_units = layer.coded_units;
      ListExact(layer, written, &cell);
      const uint32_t end = layer.position + written;
      cell.query_tokens = batch.query_tokens;
      cell.query_position = end > batch.query_tokens ? end - batch.query_tokens : 0;
    }
    batch.cells[blockIdx.x] = cell;
  }
  for (uint32_t i = threadIdx.x; i < batch.kv_heads; i += kThreads) {
    batch.block_cost_bytes[blockIdx.x * batch.kv_heads + i] =
        layer.block_cost_bytes == nullptr ? 0 : layer.block_cost_bytes[i];
  }
  if (accepted && words.tokens > 0) {
    for (uint32_t i = threadIdx.x; i < 2 * tensor_words; i += kThreads) {
      const uint32_t tensor = i < tensor_words ? 0 : 1;
      const uint32_t index = i - tensor * tensor_words;
      *SlotWord(layer, layer.written, words, tensor, index) = tensor == 0 ? k[index] : v[index];
    }
    SetRunTokens(layer, layer.written, written);
    if (threadIdx.x == 0) query.layer->written = written;
  }
  if (!refused) return;
  const float nan = __int_as_float(0x7FFFFFFF);
  const uint32_t rows = batch.query_tokens * batch.query_heads;
  for (uint32_t i = threadIdx.x; i < rows * batch.head_dim; i += kThreads) query.output[i] = nan;
  for (uint32_t i = threadIdx.x; i < rows; i += kThreads) query.log_sum_exp[i] = nan;
  // The first value's index is there.
  __syncthreads();
  if (!raises || threadIdx.x > 0) return;
  const uint64_t in_k = static_cast<uint64_t>(tensor_words) * values;
  const bool in_v = first_not_finite >= in_k;
  *query.flag = RefusalOf(layer, batch.layer_index, words.tokens, in_v,
                          first_not_finite - (in_v ? in_k : 0), all_finite);
}

// One block.
__global__ void __launch_bounds__(kThreads)
    AdmitKernel(MappedQuery query, uint32_t layer_index, uint32_t tokens, uint64_t values,
                AppendScratch* scratch) {
  __shared__ bool accepted;
  const MappedLayer layer = *query.layer;
  if (threadIdx.x == 0) {
    accepted = query.flag->refusal == Refusal::kNone;
    if (accepted) {
      const bool k_finite = scratch->first_not_finite[0] == values;
      const bool v_finite = scratch->first_not_finite[1] == values;
      const MappedFlag flag =
          RefusalOf(layer, layer_index, tokens, k_finite,
                    scratch->first_not_finite[k_finite ? 1 : 0], k_finite && v_finite);
      accepted = flag.refusal == Refusal::kNone;
      if (!accepted) *query.flag = flag;
    }
    scratch->written = accepted ? layer.written : kNothing;
    if (accepted) query.layer->written = layer.written + tokens;
  }
  __syncthreads();
  if (accepted) SetRunTokens(layer, layer.written, layer.written + tokens);
}

__global__ void __launch_bounds__(kThreads)
    WriteKernel(MappedQuery query, TokenWords words, const AppendScratch* scratch) {
  const uint32_t written = scratch->written;
  if (written == kNothing) return;
  const MappedLayer layer = *query.layer;
  const uint4* const k = reinterpret_cast<const uint4*>(query.k);
  const uint4* const v = reinterpret_cast<const uint4*>(query.v);
  const uint32_t tensor_words = words.tensor();
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < tensor_words; i += step) {
    *SlotWord(layer, written, words, 0, i) = k[i];
    *SlotWord(layer, written, words, 1, i) = v[i];
  }
}

template <typename T>
__device__ void Copy(const T* from, const T* to, uint32_t count) {
  static_assert(sizeof(T) % 4 == 0, "copied by words");
  if (from == nullptr) return;
  const uint32_t words = count * (sizeof(T) / 4);
  uint32_t* const out = reinterpret_cast<uint32_t*>(const_cast<T*>(to));
  for (uint32_t i = threadIdx.x; i < words; i += kThreads)
    out[i] = reinterpret_cast<const uint32_t*>(from)[i];
}

// A block a layer.
__global__ void __launch_bounds__(kThreads) UpdateKernel(const MappedUpdate* updates) {
  const MappedUpdate update = updates[blockIdx.x];
  MappedLayer next = update.next;
  const MappedLayer old = *update.layer;
  const uint32_t end = old.position + old.written;
  next.written = update.keeps_written && end > next.position ? end - next.position : 0;
  Copy(update.coded, next.coded, next.coded_runs);
  Copy(update.exact, next.exact, update.exact_runs);
  Copy(update.heads, next.heads, update.kv_heads);
  Copy(update.block_cost_bytes, next.block_cost_bytes, update.kv_heads);
  __syncthreads();
  SetRunTokens(next, next.room, next.written);
  if (threadIdx.x == 0) *update.layer = next;
}

__global__ void __launch_bounds__(kThreads)
    ReadKernel(const MappedLayer* layers, uint32_t count, const MappedFlag* flag,
               MappedFlag* flag_out, uint64_t* token_counts) {
  for (uint32_t i = threadIdx.x; i < count; i += kThreads)
    token_counts[i] = static_cast<uint64_t>(layers[i].position) + layers[i].written;
  if (threadIdx.x == 0) *flag_out = *flag;
}

// A block a layer.
__global__ void __launch_bounds__(kThreads) DropKernel(MappedLayer* layers, uint32_t token_count) {
  const MappedLayer layer = layers[blockIdx.x];
  const uint32_t most = token_count > layer.position ? token_count - layer.position : 0;
  if (layer.written <= most) return;
  SetRunTokens(layer, layer.written, most);
  if (threadIdx.x == 0) layers[blockIdx.x].written = most;
}

}  // namespace

cudaError_t PrepareAttend(const MappedBatch& batch, cudaStream_t stream) {
  PrepareKernel<<<batch.query_count, kThreads, 0, stream>>>(batch, WordsOf(batch, batch.tokens));
  return cudaGetLastError();
}

cudaError_t AppendTokens(const MappedBatch& batch, const MappedQuery& query, uint32_t tokens,
                         AppendScratch* scratch, cudaStream_t stream) {
  const uint64_t values = static_cast<uint64_t>(tokens) * batch.kv_heads * batch.head_dim;
  cudaError_t error =
      raw::FindNonFinite(query.k, batch.dtype, values, &scratch->first_not_finite[0], stream);
  if (error == cudaSuccess)
    error = raw::FindNonFinite(query.v, batch.dtype, values, &scratch->first_not_finite[1], stream);
  if (error != cudaSuccess) return error;
  AdmitKernel<<<1, kThreads, 0, stream>>>(query, batch.layer_index, tokens, values, scratch);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const TokenWords words = WordsOf(batch, tokens);
  const unsigned needed = (words.tensor() + kThreads - 1) / kThreads;
  const unsigned blocks = std::min(needed, kAppendBlocksMax);
  WriteKernel<<<blocks, kThreads, 0, stream>>>(query, words, scratch);
  return cudaGetLastError();
}

cudaError_t UpdateLayers(const MappedUpdate* updates, size_t count, cudaStream_t stream) {
  UpdateKernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(updates);
  return cudaGetLastError();
}

cudaError_t ReadState(const MappedLayer* layers, size_t count, const MappedFlag* flag,
                      MappedFlag* flag_out, uint64_t* token_counts, cudaStream_t stream) {
  ReadKernel<<<1, kThreads, 0, stream>>>(layers, static_cast<uint32_t>(count), flag, flag_out,
                                         token_counts);
  return cudaGetLastError();
}

cudaError_t DropTokens(MappedLayer* layers, size_t count, uint32_t token_count,
                       cudaStream_t stream) {
  DropKernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(layers, token_count);
  return cudaGetLastError();
}

}  // namespace kvdepot
