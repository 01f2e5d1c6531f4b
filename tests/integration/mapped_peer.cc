// A process that maps a session, for tests that stop and kill it:
//   mapped_peer ADDRESS SESSION_ID write TOKENS SEED   appends up to TOKENS, commits now and then
//   mapped_peer ADDRESS SESSION_ID read 0 SEED         attends, refreshes, attends, without end
// Every output is compared with the truth. It reports on its standard output, a line each: "R PID
// N" before a Commit of N tokens, "C PID N" after it, "V PID 1" for an output that was right. Exit
// codes: 0 all tokens are committed, 1 an output was wrong or a call failed in a way that it must
// not, 3 another process writes the session.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/mapped_session.h"
#include "tests/integration/mapped_arm.h"
#include "tests/integration/mapped_tokens.h"

namespace kvdepot {
namespace {

constexpr double kErrorMax = 1e-4;
// 15-bit queries and weights.
constexpr double kErrorMaxOnGpu = 2e-3;
constexpr int kExitWrong = 1;
constexpr int kExitNotTheWriter = 3;

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

void Report(char what, uint64_t count) {
  const std::string line = absl::StrCat(std::string(1, what), " ", getpid(), " ", count, "\n");
  // One write of so few bytes is not torn.
  if (write(STDOUT_FILENO, line.data(), line.size()) < 0) std::exit(kExitWrong);
}

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "mapped_peer %d: %s\n", getpid(), why.c_str());
  std::exit(kExitWrong);
}

class Peer {
 public:
  Peer(std::string address, std::string session_id, bool writes, uint64_t tokens, unsigned seed)
      : address_(std::move(address)),
        session_id_(std::move(session_id)),
        writes_(writes),
        tokens_(tokens),
        random_(seed) {}

  int Run() {
    for (;;) {
      const absl::Status status = Map();
      if (status.ok()) {
        const absl::Status ended = writes_ ? Write() : Read();
        if (ended.ok()) return 0;
        // Its lease has ended meanwhile, or the daemon is busy with the session.
        if (!absl::IsFailedPrecondition(ended) && !absl::IsAborted(ended) &&
            !absl::IsUnavailable(ended)) {
          Fail(ended.ToString());
        }
      } else if (writes_ && absl::IsFailedPrecondition(status)) {
        return kExitNotTheWriter;
      } else if (!absl::IsUnavailable(status) && !absl::IsFailedPrecondition(status)) {
        Fail(status.ToString());
      }
      if (session_ != nullptr) arm_->Forget(session_.get());
      session_ = nullptr;
      lease_ = nullptr;
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

 private:
  absl::Status Map() {
    absl::StatusOr<std::shared_ptr<Lease>> lease = Lease::Open(address_, {}, Soon());
    if (!lease.ok()) return lease.status();
    lease_ = *std::move(lease);
    if (arm_ == nullptr) arm_ = MappedArm::For(*lease_);
    absl::StatusOr<std::unique_ptr<MappedSession>> session = MappedSession::Open(
        lease_, session_id_, {writes_ ? MapAccess::kWrite : MapAccess::kRead, 0}, Soon());
    if (!session.ok()) return session.status();
    session_ = *std::move(session);
    return absl::OkStatus();
  }

  int layers() const { return static_cast<int>(session_->shape().layers.size()); }

  void Verify(int layer, const MappedQuery& query, uint64_t token_count) {
    const double error = query.ErrorOver(layer, static_cast<int>(token_count));
    if (!(error < (lease_->device().empty() ? kErrorMax : kErrorMaxOnGpu))) {
      Fail(absl::StrCat("error ", error, " in layer ", layer, " over ", token_count,
                        " tokens, directory ", session_->directory_version(), ", committed ",
                        session_->committed_token_count()));
    }
    Report('V', 1);
  }

  absl::Status Write() {
    uint64_t position = session_->committed_token_count();
    while (position < tokens_) {
      const uint64_t most = std::min<uint64_t>(session_->room_tokens(), 90);
      const uint64_t end = std::min(position + 1 + random_() % most, tokens_);
      for (; position < end; ++position) {
        // Attending each token would take the time of the test: one in eight.
        const bool attends = random_() % 8 == 0;
        for (int layer = 0; layer < layers(); ++layer) {
          const MappedTokens token(layer, static_cast<int>(position), 1);
          MappedQuery query(static_cast<int>(position));
          absl::Status status =
              arm_->Append(session_.get(), layer, token, attends ? &query : nullptr);
          if (!status.ok()) return status;
          if (attends) Verify(layer, query, position + 1);
        }
      }
      Report('R', position);
      absl::Status status = arm_->Commit(session_.get(), Soon());
      if (!status.ok()) return status;
      Report('C', position);
    }
    return absl::OkStatus();
  }

  absl::Status Read() {
    for (;;) {
      // Several outputs of one directory: what it lists must not change meanwhile.
      for (int i = 0; i < 3 && session_->committed_token_count() > 0; ++i) {
        const int layer = static_cast<int>(random_() % static_cast<unsigned>(layers()));
        MappedQuery query(static_cast<int>(random_() % 1000));
        absl::Status status = arm_->Attend(session_.get(), layer, &query);
        if (!status.ok()) return status;
        Verify(layer, query, session_->committed_token_count());
      }
      absl::Status status = arm_->Refresh(session_.get(), Soon());
      if (!status.ok()) return status;
    }
  }

  const std::string address_;
  const std::string session_id_;
  const bool writes_;
  const uint64_t tokens_;
  std::minstd_rand random_;
  std::shared_ptr<Lease> lease_;
  std::unique_ptr<MappedSession> session_;
  std::unique_ptr<MappedArm> arm_;
};

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  return kvdepot::Peer(argv[1], argv[2], std::string(argv[3]) == "write",
                       std::strtoull(argv[4], nullptr, 10),
                       static_cast<unsigned>(std::strtoul(argv[5], nullptr, 10)))
      .Run();
}
