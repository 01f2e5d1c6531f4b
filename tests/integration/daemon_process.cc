#include "tests/integration/daemon_process.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "gtest/gtest.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

}  // namespace

DaemonProcess::DaemonProcess(std::vector<std::string> flags) : flags_(std::move(flags)) { Start(); }

DaemonProcess::~DaemonProcess() { Kill(); }

std::string DaemonProcess::target() const {
  return absl::StrCat("unix://", folder_.path(), "/socket");
}

void DaemonProcess::Start() {
  std::vector<std::string> words = {"server/kvdepotd", absl::StrCat("--listen=", target()),
                                    "--metrics_address=", "--memory_budget=256MiB"};
  words.insert(words.end(), flags_.begin(), flags_.end());
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ASSERT_EQ(posix_spawn(&process_, words[0].c_str(), nullptr, nullptr, arguments.data(), environ),
            0);
}

void DaemonProcess::Kill() {
  if (process_ == 0) return;
  kill(process_, SIGKILL);
  int state = 0;
  EXPECT_EQ(waitpid(process_, &state, 0), process_);
  EXPECT_TRUE(WIFSIGNALED(state)) << "it had ended before it was killed: " << state;
  process_ = 0;
}

std::shared_ptr<Lease> DaemonProcess::OpenLease() const {
  absl::StatusOr<std::shared_ptr<Lease>> lease = absl::UnavailableError("not tried");
  const absl::Time deadline = Soon();
  while (absl::IsUnavailable(lease.status()) && absl::Now() < deadline) {
    lease = Lease::Open(target(), {}, deadline);
    if (!lease.ok()) absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_TRUE(lease.ok()) << lease.status();
  return lease.ok() ? *lease : nullptr;
}

std::string DaemonProcess::CreateSession(const std::string& name) const {
  const auto client = Client::Connect(target(), {}, Soon());
  if (!client.ok()) {
    ADD_FAILURE() << client.status();
    return "";
  }
  v1::CreateSessionRequest request;
  request.set_name(name);
  request.set_dtype(v1::DTYPE_FP32);
  request.set_codec(v1::CODEC_RAW);
  for (int i = 0; i < kLayers; ++i) {
    v1::LayerShape* const layer = request.add_layers();
    layer->set_kv_heads(kKvHeads);
    layer->set_query_heads(kQueryHeads);
    layer->set_head_dim(kHeadDim);
  }
  const auto response = (*client)->CreateSession(request, Soon());
  EXPECT_TRUE(response.ok()) << response.status();
  return response.ok() ? response->session().id() : "";
}

}  // namespace kvdepot
