#include "tests/integration/mapped_arm.h"

namespace kvdepot {
namespace {

class HostArm final : public MappedArm {
 public:
  void Forget(MappedSession* /*session*/) override {}
  absl::Status Append(MappedSession* session, int layer, const MappedTokens& token,
                      MappedQuery* query) override {
    const size_t index = static_cast<size_t>(layer);
    absl::Status status = query == nullptr
                              ? session->Append(index, token.tokens())
                              : stream_.AppendAttend(index, 0, {query->Of(session, &token)});
    return status.ok() ? session->error() : status;
  }
  absl::Status Attend(MappedSession* session, int layer, MappedQuery* query) override {
    return stream_.Attend(static_cast<size_t>(layer), 0, {query->Of(session)});
  }
  absl::Status Commit(MappedSession* session, absl::Time deadline) override {
    return session->Commit(deadline);
  }
  absl::Status Refresh(MappedSession* session, absl::Time deadline) override {
    return session->Refresh(deadline);
  }

 private:
  MappedStream stream_{1};
};

}  // namespace

std::unique_ptr<MappedArm> MappedArm::For(const Lease& lease) {
  return lease.device().empty() ? std::make_unique<HostArm>() : MakeCudaArm();
}

}  // namespace kvdepot
