// Hostile bytes: ValidateSegment must refuse them or they must be safe to read whole.

#include <cstring>
#include <vector>

#include "gpu/backend.h"
#include "gpu/check.h"
#include "gpu/segment_view.h"
#include "tests/gpu/stored_layer.h"

namespace kvdepot {
namespace {

// Reads everything that a valid segment claims to hold.
void ReadWhole(const std::vector<uint64_t>& aligned) {
  static const std::unique_ptr<Backend> backend = MakeCpuBackend(1);
  const std::byte* data = reinterpret_cast<const std::byte*>(aligned.data());
  const SegmentView view = SegmentView::Of(data);
  const LayerShape shape{view.kv_heads(), view.kv_heads(), view.head_dim(), 0, 0};
  std::mt19937 random(1);
  const LayerCalibration calibration = RandomCalibration(shape, random);
  const TokenRun run{SegmentForm(view.codec()), data, view.tokens(), 0, view.tokens()};
  const size_t bytes = 4 * shape.row_values() * static_cast<size_t>(view.tokens());
  std::vector<std::byte> k(bytes), v(bytes);
  backend->Decode(shape, view.dtype(), &calibration, {&run, 1}, DType::kFp32, MemorySpace::kHost,
                  k.data(), v.data());
}

}  // namespace
}  // namespace kvdepot

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvdepot;
  std::vector<uint64_t> aligned((size + 7) / 8 + 1);
  if (size > 0) memcpy(aligned.data(), data, size);
  std::byte* bytes = reinterpret_cast<std::byte*>(aligned.data());
  if (ValidateSegment({bytes, size}).ok()) ReadWhole(aligned);
  // The same with a checksum that fits, so that what lies behind that check is reached.
  if (size >= sizeof(SegmentHeader)) {
    const uint64_t checksum = SegmentChecksum({bytes, size});
    memcpy(bytes + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));
    if (ValidateSegment({bytes, size}).ok()) ReadWhole(aligned);
  }
  return 0;
}
