#include "gpu/attend_lists.h"

#include <algorithm>

#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// Whether kernels read it by whole blocks, in a form of its own.
bool IsCoded(const TokenRun& run) {
  return run.form == TokenRun::Form::kPlanes || run.form == TokenRun::Form::kPackKv;
}

int BlocksTouched(const TokenRun& run) {
  return (run.first + run.count - 1) / kBlockTokens - run.first / kBlockTokens + 1;
}

class ExactList {
 public:
  ExactList(ExactRun* runs, size_t row_bytes) : runs_(runs), row_bytes_(row_bytes) {}

  void AddExtent(const TokenRun& run, uint32_t position) {
    Add(run.data, 2 * static_cast<size_t>(run.capacity) * row_bytes_, position, run.first,
        run.count, run.capacity);
  }
  // A raw segment: one entry a block.
  void AddRaw(const TokenRun& run, size_t header_bytes, uint32_t position) {
    const size_t record_bytes = 2 * kBlockTokens * row_bytes_;
    const int end = run.first + run.count;
    for (int token = run.first; token < end;) {
      const int block = token / kBlockTokens;
      const int block_end = std::min(end, (block + 1) * kBlockTokens);
      Add(run.data + header_bytes + static_cast<size_t>(block) * record_bytes,
          record_bytes * static_cast<size_t>(run.capacity / kBlockTokens), position,
          token % kBlockTokens, block_end - token, kBlockTokens);
      position += static_cast<uint32_t>(block_end - token);
      token = block_end;
    }
  }
  uint32_t size() const { return size_; }
  uint32_t units() const { return units_; }

 private:
  void Add(const std::byte* rows, size_t head_stride_bytes, uint32_t position, int first, int count,
           int capacity) {
    ExactRun& entry = runs_[size_++];
    entry = {};
    entry.rows = rows;
    entry.head_stride_bytes = head_stride_bytes;
    entry.position = position;
    entry.unit_begin = units_;
    entry.first = static_cast<uint16_t>(first);
    entry.count = static_cast<uint16_t>(count);
    entry.capacity = static_cast<uint16_t>(capacity);
    units_ += static_cast<uint32_t>((count + kExactChunkTokens - 1) / kExactChunkTokens);
  }

  ExactRun* const runs_;
  const size_t row_bytes_;
  uint32_t size_ = 0;
  uint32_t units_ = 0;
};

}  // namespace

ListSizes ListSizesOf(absl::Span<const TokenRun> runs) {
  ListSizes sizes;
  for (const TokenRun& run : runs) {
    if (run.count == 0) continue;
    if (IsCoded(run)) {
      ++sizes.coded;
    } else {
      sizes.exact +=
          run.form == TokenRun::Form::kExact ? 1 : static_cast<size_t>(BlocksTouched(run));
    }
  }
  return sizes;
}

void FillLists(const LayerShape& shape, DType dtype, absl::Span<const TokenRun> runs,
               uint64_t first_position, CodedRun* coded, ExactRun* exact, AttendCell* cell) {
  const size_t header_bytes = SegmentHeaderBytes(shape.kv_heads);
  ExactList exact_list(exact, static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype));
  uint32_t position = static_cast<uint32_t>(first_position);
  cell->coded_runs = 0;
  cell->coded_units = 0;
  for (const TokenRun& run : runs) {
    if (run.count == 0) continue;
    if (IsCoded(run)) {
      CodedRun& entry = coded[cell->coded_runs++];
      entry = {};
      entry.segment = run.data;
      entry.position = position - static_cast<uint32_t>(run.first);
      entry.unit_begin = cell->coded_units;
      entry.first = static_cast<uint16_t>(run.first);
      entry.count = static_cast<uint16_t>(run.count);
      entry.first_block = static_cast<uint16_t>(run.first / kBlockTokens);
      entry.blocks = static_cast<uint16_t>(run.capacity / kBlockTokens);
      cell->coded_units += CodedSteps(entry.first, entry.count);
    } else if (run.form == TokenRun::Form::kExact) {
      exact_list.AddExtent(run, position);
    } else {
      exact_list.AddRaw(run, header_bytes, position);
    }
    position += static_cast<uint32_t>(run.count);
  }
  cell->exact_runs = exact_list.size();
  cell->exact_units = exact_list.units();
}

}  // namespace kvdepot
