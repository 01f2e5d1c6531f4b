// Attention over `planes` records on the CPU, without decoding them.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_CPU_H_
#define KVDEPOT_GPU_PLANES_ATTEND_CPU_H_

#include <cstdint>
#include <memory>

#include "gpu/calibration.h"
#include "gpu/planes/part_view.h"
#include "gpu/query_rows.h"

namespace kvdepot::planes {

struct AttendBuffers;

// Query rows of one head over any number of its parts. Works in the calibration's channel order, so
// that queries are reordered once and outputs once. Holds a few hundred KiB; reuse it. One thread
// at a time.
class HeadAttention {
 public:
  HeadAttention();
  ~HeadAttention();

  // Starts anew. What `rows` and `layout` point to outlives Finish.
  void Begin(const QueryRows& rows, const HeadLayout& layout);
  // Adds tokens [first, first + count) of a part; the first of them stands at `position`.
  void Add(const PartView& part, uint64_t position, int first, int count);
  // Merges what was added into `results`.
  void Finish(const RowResults& results);

 private:
  QueryRows rows_;
  const HeadLayout* layout_ = nullptr;
  std::unique_ptr<AttendBuffers> buffers_;
};

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_CPU_H_
