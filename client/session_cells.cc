#include "client/session_cells.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/attend_launch.h"
#include "gpu/attend_lists.h"
#include "gpu/attend_plan.h"
#include "gpu/cuda_status.h"
#include "gpu/mapped_layer_cuda.h"
#include "gpu/planes/own_calibration.h"

namespace kvdepot {
namespace {

constexpr size_t kAlignment = 256;

// Pieces of one buffer, from its beginning on; counts only, where there is none.
class Pieces {
 public:
  size_t Take(size_t size_bytes) {
    const size_t at = end_;
    end_ += (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  size_t size_bytes() const { return end_; }

 private:
  size_t end_ = 0;
};

uint32_t RecordBytesMax(const LayerShape& shape, const LayerCalibration& calibration) {
  std::vector<DeviceHead> heads(static_cast<size_t>(shape.kv_heads));
  FillDeviceHeads(shape, calibration, heads.data());
  uint32_t most = 0;
  for (const DeviceHead& head : heads) most = std::max(most, head.record_bytes);
  return most;
}

// Of a layer that makes its own calibration: what its profile comes to, whatever its values.
uint32_t OwnRecordBytes(const LayerShape& shape, Profile profile) {
  const std::vector<float> variance(2 * shape.row_values());
  return RecordBytesMax(shape, planes::CalibrationOf(shape, profile, variance, {}));
}

}  // namespace

SessionCells::SessionCells(MappedShape shape, DeviceBuffer fixed)
    : shape_(std::move(shape)), fixed_(std::move(fixed)), places_(shape_.layers.size()) {
  for (const LayerShape& layer : shape_.layers) {
    record_bytes_max_.push_back(
        shape_.codec == Codec::kPlanes ? OwnRecordBytes(layer, shape_.profile) : 0);
  }
}

absl::StatusOr<std::unique_ptr<SessionCells>> SessionCells::Create(const MappedShape& shape,
                                                                   cudaStream_t stream) {
  absl::StatusOr<DeviceBuffer> fixed =
      DeviceBuffer::Allocate(kFlagBytes + shape.layers.size() * sizeof(MappedLayer));
  if (!fixed.ok()) return fixed.status();
  absl::Status status = CudaStatus(cudaMemsetAsync(fixed->data(), 0, fixed->size_bytes(), stream),
                                   "clearing a session's cells");
  if (!status.ok()) return status;
  return std::unique_ptr<SessionCells>(new SessionCells(shape, *std::move(fixed)));
}

absl::StatusOr<SessionCells::Plan> SessionCells::PlanOf(const MappedDirectory& directory,
                                                        size_t layer) const {
  const MappedDirectory::Layer& from = directory.layers[layer];
  Plan plan;
  uint64_t room = 0;
  bool is_first = true;
  for (const FreeSlots& slots : from.free_slots()) {
    // Kernels find a token's slot by its number (MappedLayer).
    if (!is_first && (slots.first_slot != 0 || slots.capacity != kBlockTokens)) {
      return absl::DataLossError(
          absl::StrCat("directory.layers[", layer, "].room: ", slots.capacity, " slots from ",
                       slots.first_slot, ", must be whole blocks behind the first"));
    }
    if (is_first) plan.next.open_slots = static_cast<uint32_t>(slots.count);
    is_first = false;
    room += static_cast<uint64_t>(slots.count);
  }
  plan.runs = from.RunsWith(room);
  const ListSizes all = ListSizesOf(plan.runs);
  const ListSizes committed = ListSizesOf(from.RunsWith(0));
  plan.coded = all.coded;
  plan.exact = all.exact;
  plan.next.room = static_cast<uint32_t>(room);
  plan.next.position = static_cast<uint32_t>(directory.token_count);
  plan.next.first_open = static_cast<uint32_t>(committed.exact);
  const std::vector<FreeSlots> slots = from.free_slots();
  if (!slots.empty() && slots.front().first_slot > 0) {
    --plan.next.first_open;
    plan.next.open_tokens = static_cast<uint32_t>(from.extents.back().run.count);
  }
  return plan;
}

absl::Status SessionCells::Grow(const std::vector<Plan>& plans) {
  bool fits = true;
  for (size_t i = 0; i < plans.size(); ++i) {
    fits = fits && plans[i].coded <= places_[i].coded_max && plans[i].exact <= places_[i].exact_max;
  }
  if (fits) return absl::OkStatus();
  Pieces pieces;
  std::vector<Place> places(plans.size());
  for (size_t i = 0; i < plans.size(); ++i) {
    const size_t kv_heads = static_cast<size_t>(shape_.layers[i].kv_heads);
    Place& place = places[i];
    place.coded_max = 2 * std::max<size_t>(plans[i].coded, 16);
    place.exact_max = 2 * std::max<size_t>(plans[i].exact, 8);
    place.coded = pieces.Take(place.coded_max * sizeof(CodedRun));
    place.exact = pieces.Take(place.exact_max * sizeof(ExactRun));
    place.heads = pieces.Take(kv_heads * sizeof(DeviceHead));
    place.block_costs = pieces.Take(kv_heads * sizeof(uint32_t));
  }
  absl::StatusOr<DeviceBuffer> lists = DeviceBuffer::Allocate(pieces.size_bytes());
  if (!lists.ok()) return lists.status();
  if (lists_.data() != nullptr) outgrown_.push_back(std::move(lists_));
  lists_ = *std::move(lists);
  places_ = std::move(places);
  return absl::OkStatus();
}

size_t SessionCells::UpdateBytes(const std::vector<Plan>& plans) const {
  Pieces size;
  size.Take(layer_count() * sizeof(MappedUpdate));
  for (size_t i = 0; i < layer_count(); ++i) {
    const size_t kv_heads = static_cast<size_t>(shape_.layers[i].kv_heads);
    size.Take(plans[i].coded * sizeof(CodedRun));
    size.Take(plans[i].exact * sizeof(ExactRun));
    size.Take(kv_heads * sizeof(DeviceHead));
    size.Take(kv_heads * sizeof(uint32_t));
  }
  return size.size_bytes();
}

absl::StatusOr<std::shared_ptr<PinnedBuffer>> SessionCells::Take(const MappedDirectory& directory,
                                                                 bool goes_on, StagingPool* staging,
                                                                 cudaStream_t stream) {
  std::vector<Plan> plans;
  for (size_t i = 0; i < layer_count(); ++i) {
    absl::StatusOr<Plan> plan = PlanOf(directory, i);
    if (!plan.ok()) return plan.status();
    plans.push_back(*std::move(plan));
  }
  absl::Status status = Grow(plans);
  if (!status.ok()) return status;
  absl::StatusOr<std::shared_ptr<PinnedBuffer>> buffer = staging->Take(UpdateBytes(plans));
  if (!buffer.ok()) return buffer;

  Pieces pieces;
  const auto piece = [&](size_t size_bytes) { return (*buffer)->data() + pieces.Take(size_bytes); };
  auto* const updates =
      reinterpret_cast<MappedUpdate*>(piece(layer_count() * sizeof(MappedUpdate)));
  for (size_t i = 0; i < layer_count(); ++i) {
    const LayerShape& shape = shape_.layers[i];
    const size_t kv_heads = static_cast<size_t>(shape.kv_heads);
    const Plan& plan = plans[i];
    Place& place = places_[i];
    auto* const coded = reinterpret_cast<CodedRun*>(piece(plan.coded * sizeof(CodedRun)));
    auto* const exact = reinterpret_cast<ExactRun*>(piece(plan.exact * sizeof(ExactRun)));
    auto* const heads = reinterpret_cast<DeviceHead*>(piece(kv_heads * sizeof(DeviceHead)));
    auto* const costs = reinterpret_cast<uint32_t*>(piece(kv_heads * sizeof(uint32_t)));
    AttendCell sizes = {};
    FillLists(shape, shape_.dtype, plan.runs, directory.layers[i].first_position, coded, exact,
              &sizes);
    MappedUpdate update;
    update.layer = layers() + i;
    update.next = plan.next;
    update.next.coded = reinterpret_cast<const CodedRun*>(lists_.data() + place.coded);
    update.next.exact = reinterpret_cast<ExactRun*>(lists_.data() + place.exact);
    update.next.coded_runs = sizes.coded_runs;
    update.next.coded_units = sizes.coded_units;
    update.keeps_written = goes_on;
    update.coded = coded;
    update.exact = exact;
    update.exact_runs = static_cast<uint32_t>(plan.exact);
    update.kv_heads = static_cast<uint32_t>(kv_heads);
    const auto& calibration = directory.layers[i].calibration;
    if (shape_.codec == Codec::kPackKv || calibration != nullptr) {
      update.next.block_cost_bytes =
          reinterpret_cast<const uint32_t*>(lists_.data() + place.block_costs);
    }
    if (shape_.codec == Codec::kPackKv) {
      // Its channels have no order of their own, so there are no heads.
      std::fill_n(costs, kv_heads, PackKvBlockCostBytes(shape.head_dim));
      update.block_cost_bytes = costs;
    } else if (calibration != nullptr) {
      update.next.heads = reinterpret_cast<const DeviceHead*>(lists_.data() + place.heads);
      if (place.calibration != calibration) {
        FillDeviceHeads(shape, *calibration, heads);
        std::transform(heads, heads + kv_heads, costs, BlockCostBytes);
        update.heads = heads;
        update.block_cost_bytes = costs;
        record_bytes_max_[i] = RecordBytesMax(shape, *calibration);
        place.calibration = calibration;
      }
    }
    std::memcpy(static_cast<void*>(&updates[i]), &update, sizeof(update));
  }
  status = CudaStatus(UpdateLayers(updates, layer_count(), stream), "taking a directory");
  if (!status.ok()) return status;
  return buffer;
}

}  // namespace kvdepot
