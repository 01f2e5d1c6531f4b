// What the attend kernel is launched with.
#ifndef KVDEPOT_GPU_ATTEND_PARAMETERS_CUH_
#define KVDEPOT_GPU_ATTEND_PARAMETERS_CUH_

#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_row.cuh"
#include "gpu/shape.h"

namespace kvdepot {

inline constexpr int kWarpsMax = 8;

struct AttendParameters {
  const AttendCell* cells;
  const uint32_t* block_cost_bytes;
  uint32_t first_row;
  uint32_t row_count;
  uint32_t rows_per_thread;  // of a block that counts the costs of all
  Divider tiles;
  Divider kv_heads;
  Divider ratio;  // query heads per KV head
  uint32_t query_heads;
  uint32_t sliding_window;
  float soft_cap;
  DType dtype;
  uint32_t ring_bytes;  // of a warp
  uint32_t header_bytes;
  uint64_t* parts;  // attend_parts.cuh
  float* spills;    // [block][warp] of a row's state

  // Of row `row` of the launch, which is first_row + row of the batch: its cell and KV head among
  // all cells' KV heads.
  __device__ uint32_t Head(uint32_t row) const { return tiles.Of(first_row + row); }

  __device__ RowView View(uint32_t row, uint32_t rows_per_tile) const {
    const uint32_t head = Head(row);
    RowView view;
    view.cell = &cells[kv_heads.Of(head)];
    view.kv_head = kv_heads.Rest(head);
    view.ratio = ratio;
    view.first_row = tiles.Rest(first_row + row) * rows_per_tile;
    view.query_heads = query_heads;
    return view;
  }
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_PARAMETERS_CUH_
