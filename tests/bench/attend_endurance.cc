// Attends on many streams at once for a while, as graphs that are replayed: every replay must end,
// with the bits of the one that ran alone.
//
//   attend_endurance [--seconds=60] [--streams=8] [--hang_seconds=20]
//
// Each stream has sessions, a shape and a workspace of its own. Exits with 0, with 1 if bits
// differed or CUDA failed, with 2, naming the stream, if a replay did not end within hang_seconds.
// tests/bench/attend_endurance_mps runs several of these side by side under MPS.
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/device_memory.h"
#include "tests/bench/attend_batch_cuda.h"

namespace kvdepot {
namespace {

using Clock = std::chrono::steady_clock;

// Attends of one replay: so many that a replay is longer than its launch.
constexpr int kLaunches = 8;
// Widths of heads of a real calibration, as in attend.py.
const std::vector<int> kKeyPatterns = {0, 4, 5, 7, 6, 8, 12, 11};
const std::vector<int> kValuePatterns = {0, 2, 3, 4, 7, 8, 6, 11};
const std::vector<int> kPatterns64 = {1, 2, 3, 4};

struct Kind {
  LayerShape shape;
  std::vector<int> lengths;
  int query_tokens;
};

// Streams take these in turn: long and short, one session and many, every head_dim, tiles.
const std::vector<Kind>& Kinds() {
  static const auto* const kinds = new std::vector<Kind>{
      {{8, 32, 128, 0, 0}, {131072}, 1},
      {{8, 32, 128, 0, 0}, {32768, 32767, 32769, 40000}, 1},
      {{8, 32, 128, 0, 0}, std::vector<int>(16, 8192), 1},
      {{2, 12, 128, 0, 0}, {1, 17, 300, 5000, 64, 9000}, 1},
      {{8, 32, 128, 0, 0}, {100, 300, 1000, 3000, 10000, 30000, 100000}, 1},
      {{8, 32, 128, 0, 0}, {32768}, 4},
      {{8, 8, 64, 0, 0}, {65536, 1000}, 1},
      {{4, 64, 256, 0, 0}, {20000}, 16},
  };
  return *kinds;
}

[[noreturn]] void Fail(int stream, const char* what) {
  std::fprintf(stderr, "attend_endurance: stream %d: %s\n", stream, what);
  std::fflush(nullptr);
  // Not exit: other streams' work may never end.
  std::_Exit(1);
}

// One stream's sessions, its graph, and what came out of it alone.
class Endurance {
 public:
  explicit Endurance(int index) : index_(index), batch_(Request(index)) {
    Check(Stream::Create(), &stream_);
    Check(PinnedBuffer::Allocate(output_bytes() * sessions()), &outputs_);
    Capture();
    Replay();
    reference_.assign(outputs_.data(), outputs_.data() + outputs_.size_bytes());
    const auto* const values = reinterpret_cast<const float*>(reference_.data());
    for (size_t i = 0; i < reference_.size() / sizeof(float); ++i) {
      if (!std::isfinite(values[i])) Fail(index_, "an output is not finite");
    }
  }
  ~Endurance() { cudaGraphExecDestroy(graph_); }
  Endurance(const Endurance&) = delete;
  Endurance& operator=(const Endurance&) = delete;

  void RunUntil(Clock::time_point end) {
    Touch();
    while (Clock::now() < end) {
      Replay();
      if (memcmp(outputs_.data(), reference_.data(), reference_.size()) != 0) ++differences_;
      ++replays_;
      Touch();
    }
    done_ = true;
  }

  // Any thread.
  bool done() const { return done_; }
  Clock::duration since_progress() const {
    return Clock::now().time_since_epoch() - Clock::duration(touched_.load());
  }
  long replays() const { return replays_; }
  long differences() const { return differences_; }

 private:
  static AttendBatchRequest Request(int index) {
    const Kind& kind = Kinds()[static_cast<size_t>(index) % Kinds().size()];
    AttendBatchRequest request;
    request.shape = kind.shape;
    request.lengths = kind.lengths;
    request.query_tokens = kind.query_tokens;
    request.calibration = kind.shape.head_dim == 64
                              ? CalibrationOfPatterns(kind.shape, kPatterns64, kPatterns64)
                              : CalibrationOfPatterns(kind.shape, kKeyPatterns, kValuePatterns);
    return request;
  }

  void Check(cudaError_t error) const {
    if (error != cudaSuccess) Fail(index_, cudaGetErrorString(error));
  }
  template <class T>
  void Check(absl::StatusOr<T> made, T* to) const {
    if (!made.ok()) Fail(index_, made.status().ToString().c_str());
    *to = *std::move(made);
  }

  size_t sessions() const {
    return Kinds()[static_cast<size_t>(index_) % Kinds().size()].lengths.size();
  }
  size_t output_bytes() const { return batch_.output_values() * sizeof(float); }

  // Outputs are NaN before each attend, so that one which writes nothing shows.
  void Capture() {
    const cudaStream_t stream = stream_.get();
    Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int launch = 0; launch < kLaunches; ++launch) {
      for (size_t session = 0; session < sessions(); ++session) {
        Check(cudaMemsetAsync(batch_.output(0, static_cast<int>(session)), 0xFF, output_bytes(),
                              stream));
      }
      Check(batch_.Launch(0, stream));
    }
    for (size_t session = 0; session < sessions(); ++session) {
      Check(cudaMemcpyAsync(outputs_.data() + session * output_bytes(),
                            batch_.output(0, static_cast<int>(session)), output_bytes(),
                            cudaMemcpyDeviceToHost, stream));
    }
    cudaGraph_t captured = nullptr;
    Check(cudaStreamEndCapture(stream, &captured));
    Check(cudaGraphInstantiate(&graph_, captured, 0));
    cudaGraphDestroy(captured);
  }

  void Replay() {
    Check(cudaGraphLaunch(graph_, stream_.get()));
    Check(cudaStreamSynchronize(stream_.get()));
  }

  void Touch() { touched_ = Clock::now().time_since_epoch().count(); }

  const int index_;
  const AttendBatch batch_;
  Stream stream_;
  PinnedBuffer outputs_;
  cudaGraphExec_t graph_ = nullptr;
  std::vector<std::byte> reference_;
  std::atomic<Clock::rep> touched_{Clock::now().time_since_epoch().count()};
  std::atomic<long> replays_{0};
  std::atomic<long> differences_{0};
  std::atomic<bool> done_{false};
};

// Returns when all have ended; ends the process if one of them hangs.
void Watch(const std::vector<std::unique_ptr<Endurance>>& streams, std::chrono::seconds hang) {
  for (bool running = true; running;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    running = false;
    for (size_t i = 0; i < streams.size(); ++i) {
      if (streams[i]->done()) continue;
      running = true;
      if (streams[i]->since_progress() < hang) continue;
      std::fprintf(stderr,
                   "attend_endurance: stream %zu hangs: replay %ld has not ended in %lld s\n", i,
                   streams[i]->replays() + 1, static_cast<long long>(hang.count()));
      std::fflush(nullptr);
      std::_Exit(2);
    }
  }
}

int Run(std::chrono::seconds time, int count, std::chrono::seconds hang) {
  std::vector<std::unique_ptr<Endurance>> streams;
  for (int i = 0; i < count; ++i) streams.push_back(std::make_unique<Endurance>(i));
  const Clock::time_point end = Clock::now() + time;
  std::vector<std::thread> threads;
  for (auto& stream : streams) threads.emplace_back([&stream, end] { stream->RunUntil(end); });
  Watch(streams, hang);
  for (std::thread& thread : threads) thread.join();

  long differences = 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    std::printf("stream %zu: %ld replays of %d attends, %ld differ\n", i, streams[i]->replays(),
                kLaunches, streams[i]->differences());
    differences += streams[i]->differences();
  }
  return differences == 0 ? 0 : 1;
}

// The number behind `--name=`, if `argument` is that flag.
bool ReadFlag(const std::string& argument, const std::string& name, int* value) {
  const std::string prefix = "--" + name + "=";
  if (argument.rfind(prefix, 0) != 0) return false;
  *value = std::atoi(argument.c_str() + prefix.size());
  return *value > 0;
}

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) {
  int seconds = 60;
  int streams = 8;
  int hang_seconds = 20;
  for (int i = 1; i < argc; ++i) {
    if (kvdepot::ReadFlag(argv[i], "seconds", &seconds)) continue;
    if (kvdepot::ReadFlag(argv[i], "streams", &streams)) continue;
    if (kvdepot::ReadFlag(argv[i], "hang_seconds", &hang_seconds)) continue;
    std::fprintf(stderr,
                 "usage: attend_endurance [--seconds=N] [--streams=N] [--hang_seconds=N]\n");
    return 64;
  }
  return kvdepot::Run(std::chrono::seconds(seconds), streams, std::chrono::seconds(hang_seconds));
}
