// Stands for cuda_mapped_stream.cc where no CUDA toolkit was found.
#include "client/cuda_mapped_stream.h"

namespace kvdepot {

absl::StatusOr<std::unique_ptr<CudaMappedStream>> CudaMappedStream::Create(
    CUstream_st* /*stream*/) {
  return absl::UnimplementedError("stream: this client was built without CUDA");
}

}  // namespace kvdepot
