// Attention over exact tokens, on the CPU, in fp32.
#ifndef KVDEPOT_GPU_RAW_ATTEND_CPU_H_
#define KVDEPOT_GPU_RAW_ATTEND_CPU_H_

#include <cstddef>
#include <cstdint>

#include "gpu/query_rows.h"
#include "gpu/shape.h"

namespace kvdepot::raw {

// Adds tokens [0, tokens) at positions position.. to `results`. k and v: [tokens][head_dim] of
// `dtype`. Any number of tokens.
void AttendExact(const QueryRows& rows, DType dtype, const std::byte* k, const std::byte* v,
                 uint64_t position, int tokens, const RowResults& results);

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_CPU_H_
