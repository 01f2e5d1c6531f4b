#include "tests/gpu/warp/lanes.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "gpu/check.h"

namespace kvdepot::warp {
namespace {

// Sanitizers' frames are large.
constexpr size_t kStackBytes = size_t{512} << 10;
// So often in a row lanes only wait before that counts as forever.
constexpr int kWaitsMax = 100000;

class Lanes {
 public:
  Lanes(unsigned seed, const std::function<void(int lane)>& code);
  void Run();

  int lane() const { return lane_; }
  void Yield();
  const std::byte* Meet(const char* operation, const void* operand, size_t bytes);

 private:
  void Prepare(int lane);
  static void Begin();
  // Draws the next lane and goes on there.
  void GoOn();
  void EndMeeting();

  const std::function<void(int lane)>& code_;
  std::mt19937 random_;
  std::unique_ptr<std::byte[]> stacks_[kLanes];
  ucontext_t caller_;
  ucontext_t contexts_[kLanes];
  int lane_ = 0;
  // Lanes that are at no meeting, in no order, and what the others are at.
  int ready_[kLanes];
  int ready_count_ = kLanes;
  const char* at_[kLanes] = {};
  int waits_ = 0;
  // Of this meeting and of the last one, which some may still read.
  std::byte operands_[2][kLanes * kOperandBytesMax];
  int meeting_ = 0;
};

// Fibers of a thread see that thread's.
thread_local Lanes* running = nullptr;

constexpr char kReturned[] = "the end";

Lanes::Lanes(unsigned seed, const std::function<void(int lane)>& code)
    : code_(code), random_(seed) {
  for (int lane = 0; lane < kLanes; ++lane) Prepare(lane);
}

void Lanes::Prepare(int lane) {
  ready_[lane] = lane;
  stacks_[lane].reset(new std::byte[kStackBytes]);
  ucontext_t& context = contexts_[lane];
  KVDEPOT_CHECK(getcontext(&context) == 0);
  context.uc_stack.ss_sp = stacks_[lane].get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, &Lanes::Begin, 0);
}

void Lanes::Run() {
  lane_ = ready_[random_() % kLanes];
  KVDEPOT_CHECK(swapcontext(&caller_, &contexts_[lane_]) == 0);
}

void Lanes::Begin() {
  Lanes& lanes = *running;
  lanes.code_(lanes.lane_);
  lanes.Meet(kReturned, nullptr, 0);
  // All have returned.
  setcontext(&lanes.caller_);
}

void Lanes::Yield() {
  if (++waits_ > kWaitsMax) {
    std::fprintf(stderr, "lane %d waits for what no lane brings\n", lane_);
    std::abort();
  }
  GoOn();
}

void Lanes::GoOn() {
  const int next = ready_[random_() % static_cast<unsigned>(ready_count_)];
  if (next == lane_) return;
  ucontext_t* const from = &contexts_[lane_];
  lane_ = next;
  KVDEPOT_CHECK(swapcontext(from, &contexts_[next]) == 0);
}

const std::byte* Lanes::Meet(const char* operation, const void* operand, size_t bytes) {
  KVDEPOT_CHECK(bytes <= kOperandBytesMax);
  std::byte* const operands = operands_[meeting_];
  if (bytes > 0)
    std::memcpy(operands + static_cast<size_t>(lane_) * kOperandBytesMax, operand, bytes);
  at_[lane_] = operation;
  for (int& ready : ready_) {
    if (ready != lane_) continue;
    ready = ready_[--ready_count_];
    break;
  }
  waits_ = 0;
  if (ready_count_ == 0) EndMeeting();
  GoOn();
  return operands;
}

void Lanes::EndMeeting() {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (std::strcmp(at_[lane], at_[0]) != 0) {
      std::fprintf(stderr, "lane 0 is at %s, lane %d at %s\n", at_[0], lane, at_[lane]);
      std::abort();
    }
    ready_[lane] = lane;
  }
  ready_count_ = kLanes;
  meeting_ ^= 1;
}

}  // namespace

void Run(unsigned seed, const std::function<void(int lane)>& code) {
  KVDEPOT_CHECK(running == nullptr);
  Lanes lanes(seed, code);
  running = &lanes;
  lanes.Run();
  running = nullptr;
}

int Lane() { return running->lane(); }
void Yield() { running->Yield(); }
const std::byte* Meet(const char* operation, const void* operand, size_t bytes) {
  return running->Meet(operation, operand, bytes);
}

}  // namespace kvdepot::warp
