#include "server/services/mapping_convert.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "server/services/field_error.h"
#include "server/services/session_convert.h"

namespace kvdepot {
namespace {

constexpr size_t kLeaseIdBytesMax = 64;

v1::MappedForm FormOf(TokenRun::Form form) {
  switch (form) {
    case TokenRun::Form::kExact:
      return v1::MAPPED_FORM_EXACT;
    case TokenRun::Form::kPlanes:
      return v1::MAPPED_FORM_PLANES;
    case TokenRun::Form::kRaw:
      return v1::MAPPED_FORM_RAW;
    case TokenRun::Form::kPackKv:
      return v1::MAPPED_FORM_PACKKV;
  }
  return v1::MAPPED_FORM_UNSPECIFIED;
}

v1::MappedExtent* AddExtent(const ExtentRef& extent,
                            google::protobuf::RepeatedPtrField<v1::MappedExtent>* list) {
  v1::MappedExtent* const entry = list->Add();
  entry->set_slab(extent->memory->place().serial);
  entry->set_offset(extent->memory->place().offset);
  entry->set_size_bytes(extent->memory->size_bytes());
  return entry;
}

void AddCalibration(const LayerCalibration& calibration, v1::MappedCalibration* to) {
  to->set_hash_prefix(calibration.hash_prefix.data(), calibration.hash_prefix.size());
  for (const HeadLayout& head : calibration.heads) {
    v1::MappedHead* const entry = to->add_heads();
    entry->set_k_order(head.k.order.data(), head.k.order.size());
    entry->set_v_order(head.v.order.data(), head.v.order.size());
    entry->set_k_pattern(head.k.pattern);
    entry->set_v_pattern(head.v.pattern);
  }
}

// How `layer` continues `base`: some extents dropped at the beginning, some kept after them.
struct Overlap {
  size_t dropped = 0;
  size_t kept = 0;
};

Overlap FindOverlap(const Directory::Layer& base, const Directory::Layer& layer) {
  Overlap overlap;
  if (layer.extents.empty()) return overlap;
  const auto first = std::find(base.extents.begin(), base.extents.end(), layer.extents.front());
  if (first == base.extents.end()) return overlap;
  overlap.dropped = static_cast<size_t>(first - base.extents.begin());
  const size_t most = std::min(base.extents.size() - overlap.dropped, layer.extents.size());
  while (overlap.kept < most) {
    const size_t i = overlap.kept;
    const TokenRun& before = base.runs[overlap.dropped + i];
    const TokenRun& now = layer.runs[i];
    if (base.extents[overlap.dropped + i] != layer.extents[i] || before.first != now.first ||
        before.count != now.count) {
      break;
    }
    ++overlap.kept;
  }
  return overlap;
}

void AddLayer(const Directory::Layer* base, const Directory::Layer& layer, bool for_writer,
              v1::MappedLayer* to) {
  Overlap overlap;
  if (base != nullptr) overlap = FindOverlap(*base, layer);
  to->set_first_position(layer.first_position);
  to->set_dropped_extents(static_cast<uint32_t>(overlap.dropped));
  to->set_kept_extents(static_cast<uint32_t>(overlap.kept));
  for (size_t i = overlap.kept; i < layer.extents.size(); ++i) {
    v1::MappedExtent* const extent = AddExtent(layer.extents[i], to->mutable_extents());
    const TokenRun& run = layer.runs[i];
    extent->set_form(FormOf(run.form));
    extent->set_capacity(static_cast<uint32_t>(run.capacity));
    extent->set_first_token(static_cast<uint32_t>(run.first));
    extent->set_token_count(static_cast<uint32_t>(run.count));
  }
  if (for_writer) {
    for (size_t i = 0; i < layer.room.size(); ++i) {
      v1::MappedExtent* const extent = AddExtent(layer.room[i], to->mutable_room());
      extent->set_form(v1::MAPPED_FORM_EXACT);
      // Of an empty layer the first holds the sinks.
      const bool sinks = i == 0 && layer.runs.empty() && layer.first_position == 0;
      extent->set_capacity(sinks ? kSinkTokens : kBlockTokens);
    }
  }
  if (layer.calibration != nullptr && (base == nullptr || base->calibration != layer.calibration)) {
    AddCalibration(*layer.calibration, to->mutable_calibration());
  }
}

}  // namespace

absl::Status CheckLayoutVersion(uint32_t layout_version) {
  if (layout_version == kLayoutVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("layout_version: ", layout_version,
                                                    ", the daemon has version ", kLayoutVersion));
}

absl::Status CheckEpoch(uint64_t epoch, uint64_t own_epoch) {
  if (epoch == own_epoch) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "epoch: ", absl::Hex(epoch, absl::kZeroPad16), ", the daemon's is ",
      absl::Hex(own_epoch, absl::kZeroPad16), ": it was started anew, drop all mappings"));
}

absl::Status CheckLeaseId(absl::string_view lease_id) {
  if (!lease_id.empty() && lease_id.size() <= kLeaseIdBytesMax) return absl::OkStatus();
  return FieldError("lease_id", absl::StrCat(lease_id.size(), " bytes"),
                    absl::StrCat("1..", kLeaseIdBytesMax));
}

absl::StatusOr<MapRequest> ToMapRequest(const v1::MapSessionRequest& request) {
  absl::Status status = CheckLeaseId(request.lease_id());
  if (status.ok()) status = CheckSessionId(request.session_id());
  if (!status.ok()) return status;
  if (request.access() != v1::MAP_ACCESS_READ && request.access() != v1::MAP_ACCESS_WRITE) {
    return FieldError("access", static_cast<int>(request.access()), "READ or WRITE");
  }
  return MapRequest{request.lease_id(), request.session_id(),
                    request.access() == v1::MAP_ACCESS_WRITE, request.have_version(),
                    request.room_tokens()};
}

absl::StatusOr<CommitRequest> ToCommitRequest(const v1::CommitRequest& request) {
  absl::Status status = CheckLeaseId(request.lease_id());
  if (status.ok()) status = CheckSessionId(request.session_id());
  if (!status.ok()) return status;
  return CommitRequest{request.lease_id(),    request.session_id(),   request.generation(),
                       request.token_count(), request.have_version(), request.room_tokens()};
}

void ToProto(const SlabNotice& notice, v1::MappedSlab* slab) {
  slab->set_serial(notice.serial);
  slab->set_size_bytes(notice.size_bytes);
  slab->set_writable(notice.writable);
  slab->set_kind(static_cast<v1::MappedSlabKind>(notice.kind));
  slab->set_device(notice.device);
  slab->set_cuda_ipc_handle(notice.handle);
}

void ToProto(const MapReply& reply, v1::MappedDirectory* directory) {
  directory->set_version(reply.directory->version);
  directory->set_generation(reply.directory->generation);
  directory->set_token_count(reply.directory->token_count);
  for (size_t i = 0; i < reply.directory->layers.size(); ++i) {
    AddLayer(reply.base == nullptr ? nullptr : &reply.base->layers[i], reply.directory->layers[i],
             reply.for_writer, directory->add_layers());
  }
  for (const SlabNotice& notice : reply.slabs) ToProto(notice, directory->add_slabs());
}

}  // namespace kvdepot
