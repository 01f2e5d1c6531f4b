// Which of `packkv` is built for GPUs.
#ifndef KVDEPOT_GPU_PACKKV_CUDA_SUPPORT_H_
#define KVDEPOT_GPU_PACKKV_CUDA_SUPPORT_H_

#include "absl/status/status.h"
#include "gpu/packkv/format.h"
#include "gpu/packkv/options.h"
#include "gpu/shape.h"

namespace kvdepot::packkv {

// UNIMPLEMENTED naming the field, its value and what is built, unless a GPU encodes, decodes and
// attends to such layers: head_dim 64 and 128, packs of 16 of codes of up to four bits, not
// normalised, any repacking but greedy. `options` are valid.
absl::Status SupportedOnCuda(const LayerShape& shape, const Options& options);

// DATA_LOSS naming the field unless kernels can read a body with that header, which is valid.
absl::Status CheckReadableOnCuda(int head_dim, const BodyHeader& header);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_CUDA_SUPPORT_H_
