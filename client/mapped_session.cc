#include "client/mapped_session.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gpu/finite_cpu.h"
#include "gpu/raw/tokens_cpu.h"

namespace kvdepot {
namespace {

constexpr absl::Duration kUnmapTimeout = absl::Seconds(1);

}  // namespace

// Cumulative retirement from directories that end in any order.
class MappedSession::Versions {
 public:
  Versions(std::shared_ptr<Lease> lease, std::string session_id)
      : lease_(std::move(lease)), session_id_(std::move(session_id)) {}

  void Begin(uint64_t version) {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_use_.insert(version);
  }

  void End(uint64_t version) {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_use_.erase(in_use_.find(version));
    // The last one ends with the session, which is unmapped.
    if (in_use_.empty() || *in_use_.begin() < version) return;
    lease_->Retire(session_id_, *in_use_.begin());
  }

 private:
  const std::shared_ptr<Lease> lease_;
  const std::string session_id_;
  std::mutex mutex_;
  std::multiset<uint64_t> in_use_;
};

absl::StatusOr<std::unique_ptr<MappedSession>> MappedSession::Open(std::shared_ptr<Lease> lease,
                                                                   const std::string& session_id,
                                                                   const Options& options,
                                                                   absl::Time deadline) {
  std::unique_ptr<MappedSession> session(new MappedSession(std::move(lease), session_id, options));
  absl::Status status = session->Map(deadline, 0);
  if (!status.ok()) return status;
  return session;
}

MappedSession::MappedSession(std::shared_ptr<Lease> lease, std::string id, const Options& options)
    : lease_(std::move(lease)),
      id_(std::move(id)),
      options_(options),
      versions_(std::make_shared<Versions>(lease_, id_)) {}

MappedSession::~MappedSession() {
  for (User* const user : std::exchange(users_, {})) user->Release(this);
  directory_ = nullptr;
  // Where it fails, the daemon learns it with the lease's end.
  if (!shape_.layers.empty()) lease_->Unmap(id_, absl::Now() + kUnmapTimeout).IgnoreError();
}

absl::Status MappedSession::Map(absl::Time deadline, uint64_t have_version) {
  const DirectoryRef base = directory();
  v1::MapSessionRequest request;
  request.set_session_id(id_);
  request.set_access(options_.access == MapAccess::kWrite ? v1::MAP_ACCESS_WRITE
                                                          : v1::MAP_ACCESS_READ);
  request.set_have_version(have_version);
  request.set_room_tokens(options_.room_tokens);
  absl::StatusOr<v1::MapSessionResponse> response = lease_->Map(std::move(request), deadline);
  if (!response.ok()) return response.status();
  if (have_version == 0) {
    absl::StatusOr<MappedShape> shape = MappedShape::Of(response->session());
    if (!shape.ok()) return shape.status();
    // From here on the destructor unmaps it.
    shape_ = *std::move(shape);
    shape_.is_host_memory = device().empty();
  }
  if (!response->has_directory()) return absl::OkStatus();
  return Adopt(response->directory(), have_version == 0 ? nullptr : base);
}

absl::Status MappedSession::Adopt(const v1::MappedDirectory& message, const DirectoryRef& base) {
  absl::StatusOr<std::shared_ptr<MappedDirectory>> read = MappedDirectory::Read(
      message, base.get(), shape_, [this](uint64_t serial) { return lease_->Region(serial); });
  if (!read.ok()) return read.status();
  const uint64_t version = message.version();
  versions_->Begin(version);
  // Its end, wherever the last user lets go of it, is what retires it.
  DirectoryRef next((*read).get(),
                    [held = *read, versions = versions_, version](const MappedDirectory*) mutable {
                      held = nullptr;
                      versions->End(version);
                    });
  DirectoryRef last;
  const std::lock_guard<std::mutex> lock(mutex_);
  // An answer that was overtaken by a newer one.
  if (directory_ != nullptr && directory_->version >= version) {
    last = std::move(next);
    return absl::OkStatus();
  }
  const bool goes_on = directory_ != nullptr && directory_->generation == next->generation;
  written_.resize(shape_.layers.size(), next->token_count);
  sent_token_count_ = goes_on ? std::max(sent_token_count_, next->token_count) : next->token_count;
  for (uint64_t& written : written_) {
    written = goes_on ? std::max(written, next->token_count) : next->token_count;
  }
  last = std::exchange(directory_, std::move(next));
  return absl::OkStatus();
}

MappedSession::DirectoryRef MappedSession::directory() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return directory_;
}

uint64_t MappedSession::committed_token_count() const { return directory()->token_count; }
uint64_t MappedSession::generation() const { return directory()->generation; }
uint64_t MappedSession::directory_version() const { return directory()->version; }

uint64_t MappedSession::token_count(size_t layer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return written_[layer];
}

uint64_t MappedSession::room_tokens() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t end = directory_->token_count + directory_->room_tokens();
  return end - *std::max_element(written_.begin(), written_.end());
}

absl::Status MappedSession::error() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

void MappedSession::ClearError() {
  const std::lock_guard<std::mutex> lock(mutex_);
  error_ = absl::OkStatus();
}

absl::Status MappedSession::CheckLayer(size_t layer) const {
  if (layer < shape_.layers.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer: ", layer, ", the session has ", shape_.layers.size()));
}

absl::Status MappedSession::CheckWriter() const {
  if (options_.access == MapAccess::kWrite) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("access: READ, must be WRITE in order to change session ", id_));
}

absl::Status MappedSession::CheckHostMemory() const {
  if (device().empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("session: ", id_, ", lies on ", device(), ", where a CUDA stream must be used"));
}

absl::Status MappedSession::Append(size_t layer, const DenseTokens& tokens) {
  absl::Status status = CheckWriter();
  if (status.ok()) status = CheckHostMemory();
  if (status.ok()) status = CheckLayer(layer);
  if (!status.ok()) return status;
  status = Write(layer, tokens);
  if (!status.ok()) RaiseError(status);
  return absl::OkStatus();
}

void MappedSession::RaiseError(const absl::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (error_.ok()) error_ = status;
}

void MappedSession::TakeWritten(absl::Span<const uint64_t> token_counts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < written_.size(); ++i) {
    written_[i] = std::max(token_counts[i], directory_->token_count);
  }
}

bool MappedSession::DropUnsent(uint64_t token_count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (token_count < sent_token_count_) return false;
  for (uint64_t& written : written_) written = std::min(written, token_count);
  return true;
}

absl::Status MappedSession::Write(size_t layer, const DenseTokens& tokens) {
  const LayerShape& shape = shape_.layers[layer];
  const uint64_t count = static_cast<uint64_t>(tokens.count);
  const size_t values = static_cast<size_t>(count) * shape.row_values();
  absl::Status status = CheckFiniteOnCpu("k", tokens.k, shape_.dtype, values);
  if (status.ok()) status = CheckFiniteOnCpu("v", tokens.v, shape_.dtype, values);
  if (!status.ok()) return status;
  DirectoryRef directory;
  uint64_t behind = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_.ok()) return error_;
    directory = directory_;
    behind = written_[layer] - directory->token_count;
  }
  const std::vector<FreeSlots> free = directory->layers[layer].free_slots();
  uint64_t room = 0;
  for (const FreeSlots& slots : free) room += static_cast<uint64_t>(slots.count);
  if (behind + count > room) {
    return absl::ResourceExhaustedError(absl::StrCat("room: ", room - behind, " tokens in layer ",
                                                     layer, ", ", count, " more do not fit"));
  }
  uint64_t skip = behind;
  int from = 0;
  for (const FreeSlots& slots : free) {
    if (skip >= static_cast<uint64_t>(slots.count)) {
      skip -= static_cast<uint64_t>(slots.count);
      continue;
    }
    const int first = slots.first_slot + static_cast<int>(skip);
    const int fits = std::min(tokens.count - from, slots.count - static_cast<int>(skip));
    if (fits == 0) break;
    raw::WriteTokens(shape, shape_.dtype, tokens, from, fits, slots.extent, slots.capacity, first);
    from += fits;
    skip = 0;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  written_[layer] += count;
  return absl::OkStatus();
}

absl::Status MappedSession::Commit(absl::Time deadline, uint32_t room_tokens) {
  absl::Status status = CheckWriter();
  if (status.ok()) status = CheckHostMemory();
  return status.ok() ? CommitWritten(deadline, room_tokens) : status;
}

absl::Status MappedSession::CommitWritten(absl::Time deadline, uint32_t room_tokens) {
  v1::CommitRequest request;
  DirectoryRef base;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_.ok()) return error_;
    base = directory_;
    sent_token_count_ = *std::min_element(written_.begin(), written_.end());
    request.set_token_count(sent_token_count_);
  }
  request.set_session_id(id_);
  request.set_generation(base->generation);
  request.set_room_tokens(room_tokens);
  request.set_have_version(base->version);
  const absl::StatusOr<v1::CommitResponse> response = lease_->Commit(std::move(request), deadline);
  if (!response.ok()) return response.status();
  return response->has_directory() ? Adopt(response->directory(), base) : absl::OkStatus();
}

absl::Status MappedSession::Refresh(absl::Time deadline) {
  return Map(deadline, directory_version());
}

absl::Status MappedSession::Truncate(uint64_t token_count, absl::Time deadline) {
  absl::Status status = CheckWriter();
  if (status.ok()) status = CheckHostMemory();
  return status.ok() ? TruncateWritten(token_count, deadline) : status;
}

absl::Status MappedSession::TruncateWritten(uint64_t token_count, absl::Time deadline) {
  uint64_t generation = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t least = *std::min_element(written_.begin(), written_.end());
    if (token_count > least) {
      return absl::OutOfRangeError(
          absl::StrCat("token_count: ", token_count, ", every layer has ", least));
    }
    if (token_count < sent_token_count_ && sent_token_count_ > directory_->token_count) {
      return absl::FailedPreconditionError(
          absl::StrCat("commit: of ", sent_token_count_,
                       " tokens, is not answered; commit again before ", token_count, " are kept"));
    }
    generation = directory_->generation;
  }
  if (DropUnsent(token_count)) return absl::OkStatus();
  v1::TruncateSessionRequest request;
  request.set_session_id(id_);
  request.set_generation(generation);
  request.set_token_count(token_count);
  const absl::StatusOr<v1::Session> truncated = lease_->Truncate(std::move(request), deadline);
  if (!truncated.ok()) return truncated.status();
  return Refresh(deadline);
}

MappedSession::View MappedSession::ViewOf(size_t layer) const {
  View view;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    view.directory = directory_;
    view.token_count = written_[layer];
    view.flagged = !error_.ok();
  }
  view.runs =
      view.directory->layers[layer].RunsWith(view.token_count - view.directory->token_count);
  return view;
}

absl::Status MappedStream::Check(size_t layer, absl::Span<const Query> queries,
                                 bool appends) const {
  std::set<const MappedSession*> sessions;
  for (size_t i = 0; i < queries.size(); ++i) {
    const MappedSession& session = *queries[i].session;
    absl::Status status = session.CheckLayer(layer);
    if (status.ok()) status = session.CheckHostMemory();
    if (status.ok() && appends) status = session.CheckWriter();
    if (status.ok() && appends && !sessions.insert(&session).second) {
      status = absl::InvalidArgumentError(
          absl::StrCat("session: ", session.id(), ", stands in these queries twice"));
    }
    if (status.ok()) {
      const int query_tokens = appends ? queries[i].tokens.count : queries[i].query_tokens;
      const uint64_t visible =
          session.token_count(layer) + static_cast<uint64_t>(appends ? query_tokens : 0);
      if (query_tokens < 1 || static_cast<uint64_t>(query_tokens) > visible) {
        status = absl::InvalidArgumentError(
            absl::StrCat("query_tokens: ", query_tokens, ", must be 1..", visible));
      }
    }
    if (status.ok()) {
      const LayerShape& shape = session.shape().layers[layer];
      const int query_tokens = appends ? queries[i].tokens.count : queries[i].query_tokens;
      status = CheckFiniteOnCpu("q", queries[i].q, session.shape().dtype,
                                static_cast<size_t>(query_tokens) *
                                    static_cast<size_t>(shape.query_heads) *
                                    static_cast<size_t>(shape.head_dim));
    }
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("queries[", i, "].", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status MappedStream::AppendAttend(size_t layer, float scale,
                                        absl::Span<const Query> queries) {
  absl::Status status = Check(layer, queries, /*appends=*/true);
  if (!status.ok()) return status;
  std::vector<Query> attends(queries.begin(), queries.end());
  for (Query& query : attends) {
    status = query.session->Append(layer, query.tokens);
    if (!status.ok()) return status;
    query.query_tokens = query.tokens.count;
  }
  Compute(layer, scale, attends);
  return absl::OkStatus();
}

absl::Status MappedStream::Attend(size_t layer, float scale, absl::Span<const Query> queries) {
  absl::Status status = Check(layer, queries, /*appends=*/false);
  if (status.ok()) Compute(layer, scale, queries);
  return status;
}

void MappedStream::Compute(size_t layer, float scale, absl::Span<const Query> queries) {
  std::vector<MappedSession::View> views;
  std::vector<AttendItem> items;
  views.reserve(queries.size());
  for (const Query& query : queries) {
    views.push_back(query.session->ViewOf(layer));
    const MappedSession::View& view = views.back();
    const LayerShape& shape = query.session->shape().layers[layer];
    if (view.flagged) {
      const size_t rows =
          static_cast<size_t>(query.query_tokens) * static_cast<size_t>(shape.query_heads);
      const float nan = std::numeric_limits<float>::quiet_NaN();
      std::fill_n(query.output, rows * static_cast<size_t>(shape.head_dim), nan);
      std::fill_n(query.log_sum_exp, rows, nan);
      continue;
    }
    const MappedDirectory::Layer& entry = view.directory->layers[layer];
    AttendItem item;
    item.shape = shape;
    item.dtype = query.session->shape().dtype;
    item.calibration = entry.calibration.get();
    item.runs = view.runs;
    item.first_position = entry.first_position;
    item.query_position = view.token_count - static_cast<uint64_t>(query.query_tokens);
    item.query_tokens = query.query_tokens;
    item.scale = scale != 0 ? scale : 1 / std::sqrt(static_cast<float>(shape.head_dim));
    item.q = query.q;
    item.output = query.output;
    item.log_sum_exp = query.log_sum_exp;
    items.push_back(item);
  }
  attention_.Attend(items);
}

}  // namespace kvdepot
