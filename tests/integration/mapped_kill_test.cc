// One writer and several readers of a mapped session, processes of their own, that are killed and
// stopped at random:
//   mapped_kill_test [SEED TOKENS LAYERS READERS CYCLES]
// Memory that the daemon takes back becomes NaN. On the GPU that KVDEPOT_TEST_DEVICE names, else on
// the CPU. Every output that any of them computes is right; after each end of a writer the session
// is at a count that it had committed; in the end no lease, no byte, no slab and no descriptor is
// left over.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/integration/metric.h"
#include "tests/integration/poisoning_backend.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr char kPeer[] = "tests/integration/mapped_peer";
constexpr int kExitNotTheWriter = 3;
constexpr absl::Duration kLeaseTimeout = absl::Seconds(1);

struct Plan {
  unsigned seed = 1;
  int tokens = 1000;
  int layers = 2;
  int readers = 2;
  int cycles = 14;
};
Plan plan;

// What each is, in order: "socket:[123]", "/memfd:kvdepot-tail (deleted)".
std::vector<std::string> OpenDescriptors() {
  DIR* const folder = opendir("/proc/self/fd");
  std::vector<std::string> names;
  while (const dirent* const entry = readdir(folder)) {
    char target[256] = {};
    const std::string path = absl::StrCat("/proc/self/fd/", entry->d_name);
    if (readlink(path.c_str(), target, sizeof(target) - 1) > 0) names.emplace_back(target);
  }
  closedir(folder);
  return names;
}

class MappedKillTest : public ::testing::Test {
 protected:
  MappedKillTest()
      : daemon_(
            [this](Options& options, const std::string&) {
              // A process needs a second to begin with a GPU.
              pace_ = options.device == "cpu" ? 1 : 6;
              options.metrics_address = "127.0.0.1:0";
              options.engine.lease_timeout = kLeaseTimeout;
              options.memory_budget.bytes = uint64_t{1} << 30;
            },
            Poisoning()) {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    reports_ = ends[0];
    report_to_ = ends[1];
    fcntl(reports_, F_SETFL, O_NONBLOCK);
    random_.seed(plan.seed);
  }
  void TearDown() override {
    close(reports_);
    close(report_to_);
  }

  static Server::Hooks Poisoning() {
    Server::Hooks hooks;
    hooks.make_backend = MakePoisoningBackend;
    return hooks;
  }

  double Read(const std::string& name) { return Metric(daemon_.server().metrics_address(), name); }

  pid_t Start(const std::string& session_id, bool writes) {
    std::vector<std::string> words = {kPeer,
                                      daemon_.server().addresses()[0],
                                      session_id,
                                      writes ? "write" : "read",
                                      absl::StrCat(plan.tokens),
                                      absl::StrCat(random_())};
    std::vector<char*> arguments;
    arguments.reserve(words.size() + 1);
    for (std::string& word : words) arguments.push_back(&word[0]);
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, report_to_, STDOUT_FILENO);
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, kPeer, &actions, nullptr, arguments.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }

  // Reads what peers have reported.
  void Collect() {
    char buffer[4096];
    for (ssize_t n; (n = read(reports_, buffer, sizeof(buffer))) > 0;) {
      text_.append(buffer, static_cast<size_t>(n));
    }
    size_t end = 0;
    for (size_t next; (next = text_.find('\n', end)) != std::string::npos; end = next + 1) {
      std::istringstream line(text_.substr(end, next - end));
      char what = 0;
      pid_t pid = 0;
      uint64_t count = 0;
      line >> what >> pid >> count;
      if (what == 'V') ++verified_[pid];
      if (what == 'R') requested_[pid] = count;
      if (what == 'C') committed_ = std::max(committed_, count);
    }
    text_.erase(0, end);
  }

  // Waits, and keeps reports flowing meanwhile.
  void Sleep(absl::Duration duration) {
    const absl::Time end = absl::Now() + duration;
    do {
      Collect();
      absl::SleepFor(absl::Milliseconds(2));
    } while (absl::Now() < end);
  }

  // Exit code of a process that ends by itself; -1 if a signal ended it.
  int Wait(pid_t pid) {
    int state = 0;
    while (waitpid(pid, &state, WNOHANG) == 0) Sleep(absl::Milliseconds(5));
    return WIFEXITED(state) ? WEXITSTATUS(state) : -1;
  }
  void Kill(pid_t pid) {
    kill(pid, SIGKILL);
    EXPECT_EQ(Wait(pid), -1) << "it had ended before it was killed";
  }

  // A killed writer's last Commit counts or does not count, but nothing else does.
  void CheckCount(const std::string& session_id, pid_t writer) {
    Collect();
    const v1::Session session = daemon_.GetSession(session_id);
    const uint64_t count = session.committed_token_count();
    EXPECT_TRUE(count == committed_ || count == requested_[writer])
        << count << ", committed " << committed_ << ", requested " << requested_[writer];
    for (const v1::LayerState& layer : session.layer_states()) {
      EXPECT_EQ(layer.token_count(), count);
    }
    committed_ = std::max(committed_, count);
  }

  v1::Session CreateSession() {
    v1::CreateSessionRequest request;
    request.set_name("chat");
    request.set_dtype(v1::DTYPE_FP32);
    request.set_codec(v1::CODEC_RAW);
    for (int i = 0; i < plan.layers; ++i) {
      v1::LayerShape* const layer = request.add_layers();
      layer->set_kv_heads(kKvHeads);
      layer->set_query_heads(kQueryHeads);
      layer->set_head_dim(kHeadDim);
    }
    v1::CreateSessionResponse response;
    Context context;
    EXPECT_TRUE(daemon_.stub().CreateSession(context.get(), request, &response).ok());
    return response.session();
  }

  // Metrics are those of now, but leases end a little after their processes.
  void WaitUntil(const std::string& metric, double value) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (Read(metric) != value && absl::Now() < deadline) Sleep(absl::Milliseconds(20));
    EXPECT_EQ(Read(metric), value) << metric;
  }

  int pace_ = 1;
  TestDaemon daemon_;
  std::minstd_rand random_;
  int reports_ = -1;
  int report_to_ = -1;
  std::string text_;
  std::map<pid_t, int> verified_;
  std::map<pid_t, uint64_t> requested_;
  uint64_t committed_ = 0;
};

TEST_F(MappedKillTest, OutputsAreRightAndNothingIsLeftOver) {
  std::cerr << "seed " << plan.seed << ", " << plan.tokens << " tokens, " << plan.layers
            << " layers, " << plan.readers << " readers, " << plan.cycles << " cycles\n";
  const v1::Session session = CreateSession();
  Read("kvdepot_leases");
  const size_t descriptors = OpenDescriptors().size();
  pid_t writer = Start(session.id(), true);
  std::vector<pid_t> readers;
  readers.reserve(static_cast<size_t>(plan.readers));
  for (int i = 0; i < plan.readers; ++i) readers.push_back(Start(session.id(), false));

  int verified_before_end = 0;
  const auto verified = [&] {
    int total = 0;
    for (const auto& [pid, count] : verified_) total += count;
    return total;
  };
  for (int cycle = 0; cycle < plan.cycles && !HasFailure(); ++cycle) {
    Sleep(pace_ * absl::Milliseconds(50 + random_() % 250));
    verified_before_end = verified();
    int state = 0;
    for (const pid_t reader : readers) {
      ASSERT_EQ(waitpid(reader, &state, WNOHANG), 0) << "a reader ended by itself";
    }
    // A writer that has written all goes on as one that is killed while nothing happens.
    if (waitpid(writer, &state, WNOHANG) == writer) {
      ASSERT_TRUE(WIFEXITED(state) && WEXITSTATUS(state) == 0) << state;
      CheckCount(session.id(), writer);
      EXPECT_EQ(committed_, static_cast<uint64_t>(plan.tokens));
      writer = Start(session.id(), true);
      continue;
    }
    pid_t& reader = readers[random_() % readers.size()];
    switch (random_() % 6) {
      case 0:
      case 1:
        Kill(reader);
        reader = Start(session.id(), false);
        break;
      case 2:
      case 3:
        kill(writer, SIGKILL);
        if (Wait(writer) != 0) CheckCount(session.id(), writer);
        writer = Start(session.id(), true);
        // The daemon may still have to see that the other one is gone.
        for (int code = 0; (Sleep(absl::Milliseconds(100)), waitpid(writer, &code, WNOHANG)) > 0;) {
          ASSERT_TRUE(WIFEXITED(code) &&
                      (WEXITSTATUS(code) == kExitNotTheWriter || WEXITSTATUS(code) == 0));
          if (WEXITSTATUS(code) == 0) break;
          writer = Start(session.id(), true);
        }
        break;
      case 4: {
        // A reader that stands still past its lease reads on in what it was shown.
        kill(reader, SIGSTOP);
        Sleep(2 * kLeaseTimeout + absl::Seconds(1));
        kill(reader, SIGCONT);
        break;
      }
      case 5: {
        // A writer that stands still loses the right; another one takes over, and the first one
        // wakes up in the middle of it.
        kill(writer, SIGSTOP);
        Sleep(2 * kLeaseTimeout + absl::Seconds(1));
        CheckCount(session.id(), writer);
        const pid_t next = Start(session.id(), true);
        Sleep(pace_ * absl::Milliseconds(300));
        kill(writer, SIGCONT);
        const int code = Wait(writer);
        EXPECT_TRUE(code == kExitNotTheWriter || code == 0) << code;
        writer = next;
        break;
      }
    }
  }
  EXPECT_GT(verified_before_end, plan.cycles);
  // Left alone, a writer commits all that is missing.
  int code = Wait(writer);
  while (code == kExitNotTheWriter && !HasFailure()) {
    writer = Start(session.id(), true);
    code = Wait(writer);
  }
  EXPECT_EQ(code, 0);
  CheckCount(session.id(), writer);
  EXPECT_EQ(committed_, static_cast<uint64_t>(plan.tokens));
  for (const pid_t reader : readers) Kill(reader);
  Collect();
  std::cerr << verified() << " outputs verified, " << committed_ << " tokens committed\n";

  WaitUntil("kvdepot_leases", 0);
  WaitUntil("kvdepot_mapped_bytes", 0);
  WaitUntil("kvdepot_directory_versions_held_back", 0);
  WaitUntil("kvdepot_memory_used_bytes",
            static_cast<double>(daemon_.GetSession(session.id()).stored_bytes()));
  EXPECT_GT(Read("kvdepot_mapped_reclaimed_bytes_total"), 0);
  v1::DeleteSessionRequest request;
  request.set_session_id(session.id());
  v1::DeleteSessionResponse response;
  Context context;
  ASSERT_TRUE(daemon_.stub().DeleteSession(context.get(), request, &response).ok());
  EXPECT_EQ(Read("kvdepot_memory_used_bytes"), 0);
  // One slab at most is kept for whoever comes next.
  EXPECT_LE(Read("kvdepot_memory_slab_bytes"), static_cast<double>(kSlabBytesDefault));
  // Connections of processes that were killed end a little later. One slab may be there.
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (OpenDescriptors().size() > descriptors + 1 && absl::Now() < deadline) {
    Sleep(absl::Milliseconds(20));
  }
  EXPECT_LE(OpenDescriptors().size(), descriptors + 1) << absl::StrJoin(OpenDescriptors(), "\n");
}

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  kvdepot::Plan& plan = kvdepot::plan;
  if (argc == 6) {
    plan.seed = static_cast<unsigned>(std::atoi(argv[1]));
    plan.tokens = std::atoi(argv[2]);
    plan.layers = std::atoi(argv[3]);
    plan.readers = std::atoi(argv[4]);
    plan.cycles = std::atoi(argv[5]);
  }
  return RUN_ALL_TESTS();
}
