// From runs of tokens to the lists that the attend kernel reads.
#ifndef KVDEPOT_GPU_ATTEND_LISTS_H_
#define KVDEPOT_GPU_ATTEND_LISTS_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "gpu/attend_directory.h"
#include "gpu/shape.h"
#include "gpu/token_run.h"

namespace kvdepot {

struct ListSizes {
  size_t coded = 0;
  size_t exact = 0;
};

// Entries that `runs` take in each list.
ListSizes ListSizesOf(absl::Span<const TokenRun> runs);

// Writes the lists of `runs`, the first of which begins at `first_position`, to `coded` and
// `exact`, which have room for ListSizesOf; and how many entries and units they have to `cell`, as
// nothing else of it.
void FillLists(const LayerShape& shape, DType dtype, absl::Span<const TokenRun> runs,
               uint64_t first_position, CodedRun* coded, ExactRun* exact, AttendCell* cell);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_LISTS_H_
