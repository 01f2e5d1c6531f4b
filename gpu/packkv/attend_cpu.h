// Attention over `packkv` segments on the CPU: blocks are decoded to fp32 in the order of their
// tokens, and exact attention reads those.
#ifndef KVDEPOT_GPU_PACKKV_ATTEND_CPU_H_
#define KVDEPOT_GPU_PACKKV_ATTEND_CPU_H_

#include <cstdint>

#include "gpu/packkv/body.h"
#include "gpu/query_rows.h"

namespace kvdepot::packkv {

// Adds tokens [first, first + count) of one KV head of `body` to `results`; the first of them
// stands at `position`. Rows are in order of query position.
void AttendBody(const QueryRows& rows, const BodyView& body, int head, uint64_t position, int first,
                int count, const RowResults& results);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ATTEND_CPU_H_
