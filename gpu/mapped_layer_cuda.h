// Kernels of mapped clients beside attention itself: tokens into the room of a directory, cells for
// the attend launch, and new directories in place of old ones.
//
// All queue on `stream`, read nothing on the host, wait for nothing and may be captured in a graph,
// but for UpdateLayers; the error is that of queueing. Memory that they read or write is the
// device's, or the host's where it says so and the device reads it under the same address. Arrays
// of values are aligned to 16 bytes.
#ifndef KVDEPOT_GPU_MAPPED_LAYER_CUDA_H_
#define KVDEPOT_GPU_MAPPED_LAYER_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/mapped_layer.h"

namespace kvdepot {

// Writes the tokens of every query behind its layer's and makes the cells from what the layers then
// have. Tokens are written all or none: if they do not fit or a value is not finite, the session's
// flag is raised. Of a session whose flag is up, outputs and log-sum-exps become NaN here, and its
// cell has no query, so that they stay it. What is launched behind it may say that it follows
// (AttendLaunch::follows_cells).
cudaError_t PrepareAttend(const MappedBatch& batch, cudaStream_t stream);

// What AppendTokens works with, zero at first.
struct AppendScratch {
  uint64_t first_not_finite[2] = {};
  uint32_t written = 0;  // before; kNothing: refused
  uint32_t zero = 0;
};

// Writes `tokens` tokens to the layer of `query`, any number of them, as PrepareAttend does.
// `scratch` serves one call at a time. `batch` says shape and layer_index.
cudaError_t AppendTokens(const MappedBatch& batch, const MappedQuery& query, uint32_t tokens,
                         AppendScratch* scratch, cudaStream_t stream);

// Takes each update. `updates` and what they point at lie in host memory, unchanged until this is
// done.
cudaError_t UpdateLayers(const MappedUpdate* updates, size_t count, cudaStream_t stream);

// *flag_out = *flag, token_counts[i] = what layers[i] has. Both outputs are host memory.
cudaError_t ReadState(const MappedLayer* layers, size_t count, const MappedFlag* flag,
                      MappedFlag* flag_out, uint64_t* token_counts, cudaStream_t stream);

// Keeps at most `token_count` tokens of each layer; those of the directory stay.
cudaError_t DropTokens(MappedLayer* layers, size_t count, uint32_t token_count,
                       cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_MAPPED_LAYER_CUDA_H_
