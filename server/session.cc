#include "server/session.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace kvdepot {

Session::Session(std::string id, std::string tenant, SessionSpec spec,
                 const std::shared_ptr<const ModelLayout>& layout,
                 std::vector<QueryMomentsRef> moments, absl::Time now)
    : id_(std::move(id)),
      tenant_(std::move(tenant)),
      spec_(std::move(spec)),
      create_time_(now),
      last_use_(now) {
  moments.resize(spec_.layers.size());
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    std::shared_ptr<const LayerCalibration> calibration;
    if (layout != nullptr) calibration = {layout, &(*layout)[i]};
    layers_.emplace_back(spec_.layers[i], spec_.dtype, std::move(calibration),
                         std::move(moments[i]));
  }
}

uint64_t Session::committed_token_count() const {
  uint64_t count = std::numeric_limits<uint64_t>::max();
  for (const Layer& layer : layers_) count = std::min(count, layer.token_count());
  return count;
}

SessionInfo Session::Info() const {
  SessionInfo info;
  info.id = id_;
  info.spec = spec_;
  info.generation = generation_;
  for (const Layer& layer : layers_) info.layers.push_back(layer.state());
  info.committed_token_count = committed_token_count();
  info.logical_bytes = logical_bytes();
  info.stored_bytes = stored_bytes();
  info.create_time = create_time_;
  info.expire_time = expire_time();
  return info;
}

uint64_t Session::logical_bytes() const {
  uint64_t bytes = 0;
  for (const Layer& layer : layers_) {
    bytes += (layer.token_count() - layer.first_held()) * 2 * layer.shape().row_values() *
             DTypeBytes(spec_.dtype);
  }
  return bytes;
}

uint64_t Session::stored_bytes() const {
  uint64_t bytes = 0;
  for (const Layer& layer : layers_) bytes += layer.stored_bytes();
  return bytes;
}

uint64_t Session::due_bytes() const {
  uint64_t bytes = 0;
  for (const Layer& layer : layers_) {
    bytes += layer.due_tokens() * ExactExtentBytes(layer.shape(), spec_.dtype, 1);
  }
  return bytes;
}

}  // namespace kvdepot
